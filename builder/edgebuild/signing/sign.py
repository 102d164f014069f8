"""Signing an image where it lies: both of cosign's forms, on the index and on every platform's manifest."""

from dataclasses import dataclass

from edgebuild.errors import SignatureError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import SignatureSink, fallback_tag, signature_tag
from edgebuild.signing.bundle import EMPTY_CONFIG, make_bundle, make_referral, make_signature_statement
from edgebuild.signing.keys import SigningKey
from edgebuild.signing.payload import add_signatures
from edgeverify.bundle import BUNDLE, COSIGN_SIGN
from edgeverify.documents import check_digest, field, objects, parse_object
from edgeverify.errors import VerificationError
from edgeverify.image import CANDIDATES, MANIFEST_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """One signed document.

    Attributes:
        digest: Of the index or manifest.
        references: "HOST/REPO:TAG" of each signature in the older form; empty where there was no tag, so that only the
            bundle was written.
    """

    digest: Digest
    references: tuple[str, ...]


def sign_image(
    sink: SignatureSink,
    digest: Digest,
    key: SigningKey,
    *,
    references: tuple[Reference, ...],
    epoch_s: int | None,
) -> tuple[Signed, ...]:
    """Sign an index and every manifest in it, or one manifest.

    The image must be in the sink; its tags need not be, so that a pipeline can name it last, when nobody can any more
    pull it unsigned. Signing again with the same key adds nothing (in a registry that lists referrers itself: with the
    same epoch, too).

    Args:
        sink: Where the image lies.
        digest: Of the index or manifest.
        key: Signs.
        references: What the image is published as. Those with a tag are signed in the older form, one payload each:
            REPO:TAG for the index and for every manifest (podman and skopeo check the manifest of their platform against
            the name that was pulled), and REPO:TAG-<profile> for that profile's manifest. Without any, bundles only.
        epoch_s: Seconds since 1970 written into the bundles' manifests, or None for none.

    Returns:
        What was signed: the manifests, then the index.

    Raises:
        SignatureError: The image is not there, or something else stands where signatures belong.
        UsageError: A tag with the profile's name behind it is too long.
    """
    # (1) Find the document and its manifests. Nothing is signed that is not there.
    top, children = _read_image(sink, digest)

    # (2) The manifests first: while one of them lacks its signature, the index has none and nothing verifies.
    tagged = tuple(reference for reference in references if reference.tag)
    subjects = [(child, _names(tagged, child)) for child in children]
    subjects.append((top, _names(tagged, top)))

    # (3) Both forms of each.
    for subject, names in subjects:
        if names:
            _write_legacy(sink, subject.digest, key, names)
        _write_bundle(sink, subject, key, epoch_s)
    return tuple(Signed(digest=subject.digest, references=names) for subject, names in subjects)


def _read_image(sink: SignatureSink, digest: Digest) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """Give the descriptor of an index or manifest, and those of the index's manifests, each once."""
    raw = _read(sink, digest)
    try:
        document = parse_object(raw, what=f"the image {digest}", max_bytes=MANIFEST_BYTES)
        entries = document.get("manifests", [])
        children = [Descriptor.from_json(entry) for entry in entries] if isinstance(entries, list) else []
    except (VerificationError, ValueError) as error:
        raise SignatureError(f"{digest} is not an image: {error}", hint="sign an image or index") from error
    media_type = document.get("mediaType") or (media.INDEX if "manifests" in document else media.MANIFEST)
    for child in children:
        _read(sink, child.digest)
    top = Descriptor(media_type=str(media_type), digest=digest, size_bytes=len(raw))
    return top, tuple({child.digest: child for child in children}.values())


def _read(sink: SignatureSink, digest: Digest) -> bytes:
    raw = sink.get_manifest(str(digest))
    if raw is None:
        raise SignatureError(
            f"{digest} is not there to be signed",
            hint="push the image or write the layout first, then sign it",
        )
    return raw


def _names(references: tuple[Reference, ...], subject: Descriptor) -> tuple[str, ...]:
    """Give the published names of one document, each once."""
    profile = subject.annotations.get(media.PROFILE_ANNOTATION, "")
    names: list[str] = []
    for reference in references:
        names.append(str(reference.with_tag(reference.tag)))
        if profile:
            names.append(str(reference.with_tag(f"{reference.tag}-{profile}")))
    return tuple(dict.fromkeys(names))


def _write_legacy(sink: SignatureSink, digest: Digest, key: SigningKey, names: tuple[str, ...]) -> None:
    tag = signature_tag(digest)
    signatures = add_signatures(sink.get_manifest(tag), digest, key, references=names)
    if signatures is None:
        return
    for payload in signatures.payloads:
        _put(sink, payload, f"signature of {digest.short}")
    _put(sink, signatures.config, f"signature of {digest.short}")
    manifest = Descriptor(
        media_type=media.MANIFEST,
        digest=Digest.of(signatures.manifest),
        size_bytes=len(signatures.manifest),
    )
    sink.put_manifest(signatures.manifest, manifest)
    sink.tag(manifest, tag)


def _write_bundle(sink: SignatureSink, subject: Descriptor, key: SigningKey, epoch_s: int | None) -> None:
    bundle = make_bundle(make_signature_statement(subject.digest), key)
    if _is_listed(sink, subject.digest, Digest.of(bundle)):
        return
    referral = make_referral(bundle, subject=subject, predicate_type=COSIGN_SIGN, epoch_s=epoch_s)
    _put(sink, referral.bundle, f"bundle of {subject.digest.short}")
    _put(sink, EMPTY_CONFIG, f"bundle of {subject.digest.short}")
    sink.put_referrer(referral.manifest, referral.descriptor, subject.digest)


def _is_listed(sink: SignatureSink, subject: Digest, bundle: Digest) -> bool:
    """Tell whether the fallback index leads to this very bundle, be it in a manifest with another time of creation.

    Where the registry lists referrers itself there is no such index; there the same manifest is simply written again.
    What cannot be read leads nowhere: `put_referrer` refuses a broken index, and a broken manifest is not ours.
    """
    try:
        index = parse_object(
            sink.get_manifest(fallback_tag(subject)) or b"{}", what="", max_bytes=MANIFEST_BYTES
        )
        listed = [entry for entry in objects(index.get("manifests")) if entry.get("artifactType") == BUNDLE]
        for entry in listed[:CANDIDATES]:
            raw = sink.get_manifest(check_digest(entry.get("digest"), what="")) or b"{}"
            manifest = parse_object(raw, what="", max_bytes=MANIFEST_BYTES)
            layers = [layer.get("digest") for layer in objects(manifest.get("layers"))]
            if layers == [str(bundle)] and field(manifest, "subject", "digest") == str(subject):
                return True
    except VerificationError:
        return False
    return False


def _put(sink: SignatureSink, data: bytes, title: str) -> None:
    sink.put_blob(Blob.of_bytes(data), digest=Digest.of(data), title=title)

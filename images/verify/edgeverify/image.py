"""Finding and verifying the signatures of one image, wherever it lies.

The rule: an image is accepted when at least one right signature by the key is found, whatever else is attached to it.
Foreign, broken and hostile candidates beside it cost a bounded effort and are named in the error when none is right.
(cosign 3.1 differs: any bundle hides the older form from it, so a stranger's bundle makes it refuse a good image.)
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from edgeverify.bundle import BUNDLE_TYPES, COSIGN_SIGN, verify_bundle
from edgeverify.documents import check_digest, field, objects, parse_base64, parse_object
from edgeverify.errors import VerificationError, shown
from edgeverify.legacy import PAYLOAD_BYTES, SIGNATURE_ANNOTATION, SIMPLE_SIGNING, verify_legacy

MANIFEST_BYTES = 4 * 1024 * 1024  # distribution-spec v1.1, "Pushing Manifests": what registries at least take
SIGNATURE_BUNDLE_BYTES = 256 * 1024
CANDIDATES = 64  # of each form; an image rarely has more than four

PREDICATE_ANNOTATION = "dev.sigstore.bundle.predicateType"
_EMPTY = "application/vnd.oci.empty.v1+json"
# cosign 2.5 and 3.1 list their bundles with the config's type instead of the manifest's (docker/buildx#4010).
_LIKELY_TYPES = (*BUNDLE_TYPES, _EMPTY, "")


_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """A manifest said to be about an image.

    Attributes:
        digest: Digest as the list gives it; unchecked.
        artifact_type: Artifact type as the list gives it, or "".
    """

    digest: str
    artifact_type: str


class Source(Protocol):
    """Where an image and its signatures lie. What it gives is not trusted: everything is hashed again.

    Its own failures (no network, no disk) pass through verification as they are. A `VerificationError` from it counts
    against the one candidate that was being read.
    """

    def manifest(self, reference: str) -> bytes | None:
        """Give a manifest or index; None when it is not there.

        Args:
            reference: A tag, or "sha256:<hex>".

        Raises:
            VerificationError: It has more than `MANIFEST_BYTES`.
        """
        ...

    def referrers(self, digest: str) -> tuple[Referrer, ...]:
        """Give what the source itself lists as being about `digest`; empty where it keeps no such list."""
        ...

    def blob(self, digest: str, *, max_bytes: int) -> bytes:
        """Give a small blob.

        Raises:
            VerificationError: It is not there or has more than `max_bytes`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A right signature that was found.

    Attributes:
        form: "legacy" or "bundle".
        place: Where it was found, for people.
        signed: The payload or statement, as signed.
    """

    form: str
    place: str
    signed: bytes


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Something that may be a signature: where it lies, and how to try it."""

    place: str
    form: str
    attempt: Callable[[], bytes]


def verify_image(
    source: Source, digest: str, key: ec.EllipticCurvePublicKey, *, reference: str | None = None
) -> Signature:
    """Verify that `key` signed the image or index `digest`, in either of cosign's forms.

    Args:
        source: Where the signatures lie.
        digest: "sha256:<hex>". A tag is resolved by the caller; what it resolves to is as good as the registry's word.
        key: From `load_public_key`.
        reference: "HOST/REPO:TAG" that the signature must name. A bundle names no image, so then only the older form
            counts. None accepts any.

    Returns:
        The first right signature.

    Raises:
        VerificationError: None was found; `reasons` says what was wrong with each candidate.
    """
    # (1) The image is named by its digest.
    check_digest(digest, what="the image digest")
    reasons: list[str] = []

    # (2) Candidates are tried one after the other: first the older form, then the bundles. A candidate that fails is
    #     noted and does no harm.
    for candidate in _candidates(source, digest, key, reference, reasons):
        try:
            return Signature(form=candidate.form, place=candidate.place, signed=candidate.attempt())
        except VerificationError as error:
            reasons.append(f"{candidate.place}: {error.message}")

    # (3) No candidate was right: the image is not signed, and the error says why each one was turned down.
    if not reasons:
        raise VerificationError(f"{digest} is not signed: nothing is attached to it")
    raise VerificationError(f"{digest} is not signed by this key: {reasons[0]}", reasons=tuple(reasons))


def _candidates(
    source: Source,
    digest: str,
    key: ec.EllipticCurvePublicKey,
    reference: str | None,
    reasons: list[str],
) -> Iterator[_Candidate]:
    """Find all candidates, each form's up to `CANDIDATES`; what cannot even be listed goes to `reasons`."""
    tag = digest.replace(":", "-")

    # (2a) Older form: every layer of the manifest under the tag sha256-<hex>.sig is one (SIGNATURE_SPEC.md).
    for number, layer in _bounded(_listed(source, f"{tag}.sig", "layers", reasons), f"{tag}.sig", reasons):
        place = f"tag {tag[:19]}….sig, layer {number}"
        if layer.get("mediaType") != SIMPLE_SIGNING:
            reasons.append(f"{place}: {shown(layer.get('mediaType'))} is no signature")
            continue
        yield _Candidate(place, "legacy", _legacy_attempt(source, layer, digest, key, reference))

    # (2b) Bundles: what the source lists as referrers, and what the fallback tag lists, each once (distribution-spec
    #      v1.1, "Listing Referrers" and "Unavailable Referrers API").
    fallback = tuple(
        Referrer(digest=str(entry.get("digest")), artifact_type=str(entry.get("artifactType") or ""))
        for entry in _listed(source, tag, "manifests", reasons)
    )
    listed = (*source.referrers(digest), *fallback)
    likely = dict.fromkeys(item.digest for item in listed if item.artifact_type in _LIKELY_TYPES)
    for _, referrer in _bounded(tuple(likely), "the list of referrers", reasons):
        place = f"referrer {shown(referrer[:19])}…"
        if reference is not None:
            reasons.append(f"{place}: a bundle names no image, so it cannot answer for {shown(reference)}")
            continue
        yield _Candidate(place, "bundle", _bundle_attempt(source, referrer, digest, key))


def _legacy_attempt(
    source: Source,
    layer: dict[str, Any],
    digest: str,
    key: ec.EllipticCurvePublicKey,
    reference: str | None,
) -> Callable[[], bytes]:
    def attempt() -> bytes:
        signature = parse_base64(
            field(layer, "annotations", SIGNATURE_ANNOTATION), what="the signature annotation"
        )
        payload = _read_blob(source, layer, max_bytes=PAYLOAD_BYTES)
        verify_legacy(payload, signature, key, digest=digest, reference=reference)
        return payload

    return attempt


def _bundle_attempt(
    source: Source, referrer: str, digest: str, key: ec.EllipticCurvePublicKey
) -> Callable[[], bytes]:
    def attempt() -> bytes:
        manifest = read_manifest(source, referrer)
        if field(manifest, "subject", "digest") != digest:
            raise VerificationError("the manifest is about another image")
        # An attestation is turned down here without being fetched (an SBOM can be large). The annotation is nobody's
        # word: what passes is still judged by the signed statement in `verify_bundle`.
        claimed = field(manifest, "annotations", PREDICATE_ANNOTATION)
        if claimed is not None and claimed != COSIGN_SIGN:
            raise VerificationError(f"it is an attestation ({shown(claimed)}), not a signature")
        layers = objects(manifest.get("layers"))
        if len(layers) != 1 or layers[0].get("mediaType") not in BUNDLE_TYPES:
            raise VerificationError("it does not hold one sigstore bundle")
        bundle = _read_blob(source, layers[0], max_bytes=SIGNATURE_BUNDLE_BYTES)
        return verify_bundle(bundle, key, digest=digest)

    return attempt


def read_manifest(source: Source, digest: str) -> dict[str, Any]:
    """Read the manifest or index `digest` and make sure that it is the one.

    Raises:
        VerificationError: It is not there, too large, other bytes or no JSON object.
    """
    check_digest(digest, what="the manifest's digest")
    raw = source.manifest(digest)
    if raw is None:
        raise VerificationError(f"the manifest {digest} is not there")
    check_hash(raw, digest, what="the manifest")
    return parse_object(raw, what=f"the manifest {digest}", max_bytes=MANIFEST_BYTES)


def check_hash(data: bytes, digest: str, *, what: str) -> None:
    """Make sure that `data` is what `digest` names.

    Raises:
        VerificationError: It is not.
    """
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if found != digest:
        raise VerificationError(f"{what} {digest} has the bytes of {found}")


def _read_blob(source: Source, descriptor: dict[str, Any], *, max_bytes: int) -> bytes:
    digest = check_digest(descriptor.get("digest"), what="the layer's digest")
    size = descriptor.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= max_bytes:
        raise VerificationError(f"the layer claims {shown(size)} bytes; at most {max_bytes} are read")
    data = source.blob(digest, max_bytes=max_bytes)
    check_hash(data, digest, what="the blob")
    return data


def _listed(source: Source, tag: str, key: str, reasons: list[str]) -> tuple[dict[str, Any], ...]:
    """Give the objects under `key` of the document that `tag` names; none when there is no such tag."""
    try:
        raw = source.manifest(tag)
        if raw is None:
            return ()
        return objects(parse_object(raw, what=f"what the tag {tag} names", max_bytes=MANIFEST_BYTES).get(key))
    except VerificationError as error:
        reasons.append(f"tag {tag}: {error.message}")
        return ()


def _bounded(items: tuple[_Item, ...], where: str, reasons: list[str]) -> Iterator[tuple[int, _Item]]:
    if len(items) > CANDIDATES:
        reasons.append(f"{where} has {len(items)} candidates; only the first {CANDIDATES} are tried")
    yield from enumerate(items[:CANDIDATES], start=1)

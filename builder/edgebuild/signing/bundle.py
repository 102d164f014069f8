"""cosign's newer form: a statement in a DSSE envelope in a sigstore bundle, carried by a manifest that names its subject.

Source: in-toto/attestation spec/v1/statement.md; dsse protocol.md v1.0.2; protobuf-specs sigstore_bundle.proto v0.3;
the bytes are those that cosign 3.1.1 writes (measured), without a transparency log.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgebuild.canonical import canonical_json
from edgebuild.oci import descriptor as media
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.image import rfc3339
from edgebuild.signing.keys import SigningKey
from edgeverify.bundle import BUNDLE, COSIGN_SIGN, IN_TOTO, STATEMENT, pae
from edgeverify.image import PREDICATE_ANNOTATION

CONTENT_ANNOTATION = "dev.sigstore.bundle.content"
CREATED_ANNOTATION = "org.opencontainers.image.created"
EMPTY_CONFIG = b"{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Referral:
    """A bundle ready to be attached.

    Attributes:
        bundle: Raw bytes of the manifest's one layer; its config is `EMPTY_CONFIG`.
        manifest: Raw bytes of the manifest.
        descriptor: The manifest's, with artifact type and annotations as a list of referrers shows them.
    """

    bundle: bytes
    manifest: bytes
    descriptor: Descriptor


def make_statement(
    digest: Digest, *, predicate_type: str, predicate: Mapping[str, Any], name: str = ""
) -> bytes:
    """Write an in-toto statement about an image.

    Args:
        digest: Of the manifest or index.
        predicate_type: URI of what is claimed, e.g. "https://spdx.dev/Document".
        predicate: The claim; JSON without floats.
        name: Name of the image; tools that match by name want one.
    """
    subject = {"name": name} if name else {}
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [{**subject, "digest": {"sha256": digest.hex}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def make_signature_statement(digest: Digest) -> bytes:
    """Write the statement that says: this image is signed. It has cosign's own bytes."""
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [{"digest": {"sha256": digest.hex}, "annotations": {}}],
            "predicateType": COSIGN_SIGN,
            "predicate": {},
        }
    )


def make_bundle(statement: bytes, key: SigningKey) -> bytes:
    """Sign a statement and wrap it."""
    return canonical_json(
        {
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": key.hint}},
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode(),
                "payloadType": IN_TOTO,
                "signatures": [{"sig": base64.b64encode(key.sign(pae(IN_TOTO, statement))).decode()}],
            },
        }
    )


def make_referral(
    bundle: bytes, *, subject: Descriptor, predicate_type: str, epoch_s: int | None
) -> Referral:
    """Write the manifest that attaches a bundle to an image.

    Args:
        bundle: From `make_bundle`.
        subject: The image or index; its annotations and platform are left out.
        predicate_type: Of the statement in the bundle.
        epoch_s: Seconds since 1970 written as the time of creation; the clock is never asked, so builds repeat. None
            leaves it out.
    """
    annotations = {CONTENT_ANNOTATION: "dsse-envelope", PREDICATE_ANNOTATION: predicate_type}
    if epoch_s is not None:
        annotations[CREATED_ANNOTATION] = rfc3339(epoch_s)
    layer = Descriptor(media_type=BUNDLE, digest=Digest.of(bundle), size_bytes=len(bundle))
    config = Descriptor(media_type=media.EMPTY, digest=Digest.of(EMPTY_CONFIG), size_bytes=len(EMPTY_CONFIG))
    about = Descriptor(media_type=subject.media_type, digest=subject.digest, size_bytes=subject.size_bytes)
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "artifactType": BUNDLE,
            "config": config.to_json(),
            "layers": [layer.to_json()],
            "subject": about.to_json(),
            "annotations": annotations,
        }
    )
    descriptor = Descriptor(
        media_type=media.MANIFEST,
        digest=Digest.of(manifest),
        size_bytes=len(manifest),
        annotations=annotations,
        artifact_type=BUNDLE,
    )
    return Referral(bundle=bundle, manifest=manifest, descriptor=descriptor)

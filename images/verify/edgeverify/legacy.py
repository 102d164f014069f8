"""cosign's older form: a signature over a "simple signing" payload.

Source: cosign specs/SIGNATURE_SPEC.md; containers/image docs/containers-signature.5.md for the payload.
"""

from cryptography.hazmat.primitives.asymmetric import ec

from edgeverify.documents import check_digest, field, parse_object
from edgeverify.errors import VerificationError, shown
from edgeverify.keys import verify_data

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
PAYLOAD_TYPE = "cosign container image signature"
PAYLOAD_BYTES = 64 * 1024


def verify_legacy(
    payload: bytes,
    signature: bytes,
    key: ec.EllipticCurvePublicKey,
    *,
    digest: str,
    reference: str | None = None,
) -> None:
    """Verify that `key` signed the image `digest` by way of `payload`.

    Args:
        payload: The layer's blob, byte for byte.
        signature: ASN.1 DER, as the layer's annotation holds it in base64.
        key: From `load_public_key`.
        digest: "sha256:<hex>" of the manifest or index.
        reference: "HOST/REPO:TAG" that the payload must name; None accepts any, as cosign does.

    Raises:
        VerificationError: The signature is not right, or it is right and says something else.
    """
    # (1) An image is named by a digest that we know, never by one that the payload brings.
    check_digest(digest, what="the image digest")
    if len(payload) > PAYLOAD_BYTES:
        raise VerificationError(f"the payload has {len(payload)} bytes, more than {PAYLOAD_BYTES}")

    # (2) The signature covers the raw bytes; nothing is parsed before they are known to be the signer's.
    verify_data(key, signature, payload)

    # (3) The payload says that it is an image signature, so that nothing else this key signed can stand in for one.
    document = parse_object(payload, what="the payload", max_bytes=PAYLOAD_BYTES)
    kind = field(document, "critical", "type")
    if kind != PAYLOAD_TYPE:
        raise VerificationError(f"the payload is of type {shown(kind)}, not {PAYLOAD_TYPE!r}")

    # (4) It names this image.
    named = field(document, "critical", "image", "docker-manifest-digest")
    if named != digest:
        raise VerificationError(f"the payload is about {shown(named)}, not about {digest}")

    # (5) It names the reference that was asked for.
    said = field(document, "critical", "identity", "docker-reference")
    if reference is not None and said != reference:
        raise VerificationError(f"the payload names {shown(said)}, not {shown(reference)}")

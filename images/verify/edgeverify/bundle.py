"""cosign's newer form: a sigstore bundle with a DSSE envelope around an in-toto statement.

Source: sigstore protobuf-specs sigstore_bundle.proto v0.3; secure-systems-lab/dsse protocol.md v1.0.2;
in-toto/attestation spec/v1/statement.md.
"""

from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from edgeverify.documents import check_digest, field, objects, parse_base64, parse_object
from edgeverify.errors import VerificationError, shown
from edgeverify.keys import verify_data

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
BUNDLE_OLDER_SPELLING = "application/vnd.dev.sigstore.bundle+json;version=0.3"
BUNDLE_TYPES = (BUNDLE, BUNDLE_OLDER_SPELLING)  # a tuple: what is looked up in it may be unhashable
IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
STATEMENT_V0_1 = "https://in-toto.io/Statement/v0.1"  # cosign's `attest` still writes it
COSIGN_SIGN = "https://sigstore.dev/cosign/sign/v1"
BUNDLE_BYTES = 32 * 1024 * 1024  # an SBOM travels in an attestation's bundle; a signature's has under 1 KiB


def pae(payload_type: str, payload: bytes) -> bytes:
    """Write what a DSSE signature covers (dsse protocol.md, "PAE")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def verify_bundle(
    bundle: bytes, key: ec.EllipticCurvePublicKey, *, digest: str, predicate_type: str = COSIGN_SIGN
) -> bytes:
    """Verify that `key` made a statement of type `predicate_type` about the image `digest`.

    cosign 3.1 accepts an image that carries nothing but an attestation (an SBOM, say) by the right key. Here the
    predicate type decides: the default takes signatures alone.

    Args:
        bundle: The layer's blob.
        key: From `load_public_key`.
        digest: "sha256:<hex>" of the manifest or index.
        predicate_type: What the statement must claim.

    Returns:
        The statement, as signed.

    Raises:
        VerificationError: The bundle is not one, the signature is not right, or it is right and says something else.
    """
    # (1) An image is named by a digest that we know, never by one that the bundle brings.
    check_digest(digest, what="the image digest")

    # (2) The bundle has the one form that cosign signs images in.
    payload, signature = _open_envelope(bundle)

    # (3) The signature covers type and payload; the payload is not parsed before it is known to be the signer's.
    #     The hint in verificationMaterial is not read: the key is given, not chosen by the bundle.
    verify_data(key, signature, pae(IN_TOTO, payload))

    # (4) The payload is an in-toto statement.
    statement = parse_object(payload, what="the statement", max_bytes=BUNDLE_BYTES)
    allowed = (STATEMENT,) if predicate_type == COSIGN_SIGN else (STATEMENT, STATEMENT_V0_1)
    if statement.get("_type") not in allowed:
        raise VerificationError(f"the statement is of type {shown(statement.get('_type'))}, not {STATEMENT}")

    # (5) It claims what was asked for, so that an attestation can never stand in for a signature.
    claimed = statement.get("predicateType")
    if claimed != predicate_type:
        raise VerificationError(f"the statement is a {shown(claimed)}, not a {predicate_type}")

    # (6) It is about this image.
    subjects = tuple(
        subject_hex
        for subject in objects(statement.get("subject"))
        if isinstance(subject_hex := field(subject, "digest", "sha256"), str)
    )
    if digest.removeprefix("sha256:") not in subjects:
        about = f"sha256:{subjects[0]}" if subjects else "no sha256 digest"
        raise VerificationError(f"the statement is about {shown(about)}, not about {digest}")
    return payload


def _open_envelope(bundle: bytes) -> tuple[bytes, bytes]:
    """Give payload and signature of the bundle's DSSE envelope."""
    document = parse_object(bundle, what="the bundle", max_bytes=BUNDLE_BYTES)
    media_type = document.get("mediaType")
    if media_type not in BUNDLE_TYPES:
        raise VerificationError(f"the bundle is of type {shown(media_type)}, not {BUNDLE}")
    if "messageSignature" in document:
        raise VerificationError(
            "the bundle holds a messageSignature; cosign signs images in DSSE envelopes only"
        )
    envelope: Any = document.get("dsseEnvelope")
    if not isinstance(envelope, dict):
        raise VerificationError("the bundle has no DSSE envelope")
    if envelope.get("payloadType") != IN_TOTO:
        raise VerificationError(f"the envelope holds {shown(envelope.get('payloadType'))}, not {IN_TOTO}")
    signatures = envelope.get("signatures")
    # protobuf-specs: "DSSE envelopes in a bundle MUST have exactly one signature".
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise VerificationError("the envelope does not have exactly one signature")
    payload = parse_base64(envelope.get("payload"), what="the envelope's payload")
    return payload, parse_base64(field(signatures[0], "sig"), what="the envelope's signature")

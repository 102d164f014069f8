"""Public keys: ECDSA on P-256 and nothing else, since it is what every cosign signs both forms with."""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from edgeverify.errors import VerificationError

PEM_BYTES = 16 * 1024
SIGNATURE_BYTES = 256  # a DER pair of two P-256 integers has at most 72


def load_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Read a public key as `cosign generate-key-pair` writes it.

    Args:
        pem: PEM with the label PUBLIC KEY (SubjectPublicKeyInfo, RFC 7468).

    Raises:
        VerificationError: A private key, a certificate, a key of another type or curve, or no key at all.
    """
    if len(pem) > PEM_BYTES:
        raise VerificationError(f"the public key has {len(pem)} bytes, more than {PEM_BYTES}")
    if b"PRIVATE KEY-----" in pem:
        raise VerificationError("this is a private key; verifying takes the public one (cosign.pub)")
    if b"-----BEGIN CERTIFICATE-----" in pem:
        raise VerificationError("this is a certificate, not a public key")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise VerificationError("this is not a public key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        kind = type(key).__name__.removesuffix("PublicKey")
        raise VerificationError(f"this is a public key of type {kind}; only ECDSA on P-256 is used")
    if not isinstance(key.curve, ec.SECP256R1):
        raise VerificationError(f"this is an ECDSA key on {key.curve.name}; only P-256 (secp256r1) is used")
    return key


def verify_data(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> None:
    """Verify an ECDSA signature with SHA-256, in ASN.1 DER, over `data`.

    Raises:
        VerificationError: It was not made over these bytes by this key.
    """
    if len(signature) > SIGNATURE_BYTES:
        raise VerificationError(f"the signature has {len(signature)} bytes, more than {SIGNATURE_BYTES}")
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise VerificationError("the signature is not by this key over these bytes") from error

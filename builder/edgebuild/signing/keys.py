"""Signing keys: ECDSA on P-256, kept as cosign keeps them, so that either program can use the other's.

A private key file is PEM around JSON: PKCS#8 DER in a NaCl secretbox whose key scrypt makes from a password.
Source: cosign pkg/cosign/keys.go; go-securesystemslib encrypted/encrypted.go.
"""

import base64
import binascii
import hashlib
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nacl.exceptions
import nacl.secret
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgebuild.canonical import canonical_json
from edgebuild.errors import SignatureError
from edgeverify.documents import parse_base64, parse_object
from edgeverify.errors import VerificationError

LABEL = "ENCRYPTED SIGSTORE PRIVATE KEY"
OLD_LABEL = "ENCRYPTED COSIGN PRIVATE KEY"
KEY_FILE_BYTES = 64 * 1024

# (N, r, p) of go-securesystemslib: its legacy, standard and OWASP strengths. Anything else in a key file could ask for
# any amount of memory and time, so it is refused before scrypt runs. N = 2^17 takes 128 MiB.
SCRYPT_PARAMETERS = frozenset({(1 << 15, 8, 1), (1 << 16, 8, 1), (1 << 17, 8, 1)})
_WRITTEN_N, _WRITTEN_R, _WRITTEN_P = 1 << 16, 8, 1
_SCRYPT_MEMORY_BYTES = 256 << 20
_SALT_BYTES = 32

_PEM = re.compile(
    rb"\s*-----BEGIN ([A-Z0-9 ]{1,64})-----\r?\n([A-Za-z0-9+/=\r\n]*)-----END \1-----\s*",
)
_GENERATE = "make a pair with: edgebuild keys generate"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key that signs.

    Attributes:
        private: ECDSA on P-256.
    """

    private: ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """Sign with SHA-256; ASN.1 DER.

        The nonce is derived from key and data (RFC 6979), so the same data gives the same signature and a signed build
        repeats bit for bit.
        """
        return self.private.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        """The key that verifies."""
        return self.private.public_key()

    @property
    def public_pem(self) -> bytes:
        """The public key as `cosign.pub` holds it."""
        return self.public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def hint(self) -> str:
        """How a bundle hints at the key: base64 of the sha256 of its SubjectPublicKeyInfo (cosign, pkg/cosign/bundle)."""
        spki = self.public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return base64.b64encode(hashlib.sha256(spki).digest()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """The two files of a pair.

    Attributes:
        private: Absolute path of the encrypted private key, mode 0600.
        public: Absolute path of the public key.
    """

    private: Path
    public: Path


def make_key() -> SigningKey:
    """Make a new key from the system's randomness."""
    return SigningKey(ec.generate_private_key(ec.SECP256R1()))


def encrypt_key(key: SigningKey, password: bytes) -> bytes:
    """Write a private key as cosign does. An empty password is allowed, as there.

    Returns:
        PEM; salt and nonce are random, so no two texts are the same.
    """
    plain = key.private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(nacl.secret.SecretBox.NONCE_SIZE)
    box = nacl.secret.SecretBox(_derive(password, salt, _WRITTEN_N, _WRITTEN_R, _WRITTEN_P))
    document = {
        "kdf": {
            "name": "scrypt",
            "params": {"N": _WRITTEN_N, "r": _WRITTEN_R, "p": _WRITTEN_P},
            "salt": _base64(salt),
        },
        "cipher": {"name": "nacl/secretbox", "nonce": _base64(nonce)},
        "ciphertext": _base64(box.encrypt(plain, nonce).ciphertext),
    }
    body = _base64(canonical_json(document))
    lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return f"-----BEGIN {LABEL}-----\n{lines}\n-----END {LABEL}-----\n".encode()


def decrypt_key(pem: bytes, password: bytes) -> SigningKey:
    """Read a private key that edgebuild or cosign wrote.

    Args:
        pem: PEM with the label `LABEL`, or `OLD_LABEL` as cosign before 2.0 wrote it.
        password: May be empty.

    Raises:
        SignatureError: No such key, hostile parameters, a wrong password, or a key of another type.
    """
    document = _open_pem(pem)
    try:
        salt, nonce, ciphertext, parameters = _read_envelope(document)
    except VerificationError as error:
        raise _damaged(error.message) from error
    if parameters not in SCRYPT_PARAMETERS:
        raise SignatureError(
            "the private key asks for scrypt parameters that no cosign writes",
            hint="whoever wrote this file wants memory or time from you; use a key that you know",
        )
    try:
        plain = nacl.secret.SecretBox(_derive(password, salt, *parameters)).decrypt(ciphertext, nonce)
    except nacl.exceptions.CryptoError as error:
        raise SignatureError(
            "the private key does not open with this password",
            hint="give the password that the key was made with; if it is right, the file is damaged",
        ) from error
    return _parse_plain(plain)


def load_signing_key(path: Path, password: bytes) -> SigningKey:
    """Read a private key file.

    Raises:
        SignatureError: It cannot be read, or is as `decrypt_key` says.
    """
    try:
        with path.open("rb") as file:
            pem = file.read(KEY_FILE_BYTES + 1)
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error.strerror}", hint=_GENERATE) from error
    try:
        return decrypt_key(pem, password)
    except SignatureError as error:
        raise SignatureError(f"{path}: {error.message}", hint=error.hint) from error


def generate_key_pairs(
    folder: Path, *, image_password: bytes, attestation_password: bytes
) -> tuple[KeyPair, KeyPair]:
    """Make the two pairs of a project and write them: `cosign.key/.pub` for images, `attest.key/.pub` for attestations.

    Two, because cosign 3.1 takes an image that carries nothing but an attestation by the key it is given for a signed
    one. A key that is there already is never overwritten; either all four files appear or none.

    Args:
        folder: Where to; made when it is not there.
        image_password: Encrypts `cosign.key`.
        attestation_password: Encrypts `attest.key`.

    Raises:
        SignatureError: One of the files exists, or the folder cannot hold them.
    """
    image, attestation = (
        KeyPair(private=folder / f"{name}.key", public=folder / f"{name}.pub")
        for name in ("cosign", "attest")
    )
    names = (image.private, image.public, attestation.private, attestation.public)
    if taken := [path for path in names if path.is_symlink() or path.exists()]:
        raise _taken(taken[0])
    files: dict[Path, tuple[bytes, int]] = {}
    for pair, password in ((image, image_password), (attestation, attestation_password)):
        key = make_key()
        files[pair.private] = (encrypt_key(key, password), 0o600)
        files[pair.public] = (key.public_pem, 0o644)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_new(files)
    except OSError as error:
        raise SignatureError(
            f"keys cannot be written in {folder}: {error.strerror}",
            hint="choose a folder on a file system of your own that knows permissions and hard links",
        ) from error
    return image, attestation


def _taken(path: Path) -> SignatureError:
    return SignatureError(
        f"{path} exists and is not overwritten",
        hint="sign with the keys that are there, or make new ones in another folder",
    )


def _write_new(files: dict[Path, tuple[bytes, int]]) -> None:
    """Write all files or none: each first under a name of its own, then linked, which never replaces a file."""
    drafts: dict[Path, Path] = {}
    linked: list[Path] = []
    try:
        for path, (content, mode) in files.items():
            draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            drafts[path] = draft
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
                file.write(content)
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
        for path, draft in drafts.items():
            try:
                os.link(draft, path)
            except FileExistsError as error:  # another edgebuild came first
                raise _taken(path) from error
            linked.append(path)
    except BaseException:
        for path in linked:
            path.unlink(missing_ok=True)
        raise
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _open_pem(pem: bytes) -> dict[str, Any]:
    """Give the JSON inside the PEM of an encrypted private key."""
    if len(pem) > KEY_FILE_BYTES:
        raise SignatureError(f"the private key has more than {KEY_FILE_BYTES} bytes", hint=_GENERATE)
    found = _PEM.fullmatch(pem)
    label = found[1].decode() if found is not None else ""
    if found is None or label not in {LABEL, OLD_LABEL}:
        raise _other_pem(pem, label)
    try:
        body = binascii.a2b_base64(found[2].translate(None, b"\r\n"), strict_mode=True)
        return parse_object(body, what="its body", max_bytes=KEY_FILE_BYTES)
    except VerificationError as error:
        raise _damaged(error.message) from error
    except binascii.Error as error:
        raise _damaged("its body is not base64") from error


def _other_pem(pem: bytes, label: str) -> SignatureError:
    """Say what a file is instead of an encrypted private key."""
    if label == "PUBLIC KEY":
        return SignatureError("this is a public key", hint="sign with the private one, cosign.key")
    if label.endswith("PRIVATE KEY"):
        return SignatureError(
            f"this is a private key of another form ({label})",
            hint=f"encrypt it for signing with: cosign import-key-pair --key FILE; or {_GENERATE}",
        )
    if any(pem.lstrip().startswith(f"-----BEGIN {known}".encode()) for known in (LABEL, OLD_LABEL)):
        return _damaged("it is cut short, or something stands between its lines")
    return SignatureError("this is not a private key in PEM form", hint=_GENERATE)


def _read_envelope(document: dict[str, Any]) -> tuple[bytes, bytes, bytes, tuple[int, int, int]]:
    """Give salt, nonce, ciphertext and scrypt's (N, r, p)."""
    kdf, cipher = document.get("kdf"), document.get("cipher")
    if not isinstance(kdf, dict) or not isinstance(cipher, dict):
        raise VerificationError("it names no key derivation and cipher")
    if kdf.get("name") != "scrypt" or cipher.get("name") != "nacl/secretbox":
        raise VerificationError("it uses another key derivation or cipher than scrypt and nacl/secretbox")
    parameters = kdf.get("params")
    given = parameters if isinstance(parameters, dict) else {}
    numbers = tuple(number for name in ("N", "r", "p") if type(number := given.get(name)) is int)
    if len(numbers) != 3:
        raise VerificationError("its scrypt parameters are not numbers")
    salt = parse_base64(kdf.get("salt"), what="its salt")
    nonce = parse_base64(cipher.get("nonce"), what="its nonce")
    ciphertext = parse_base64(document.get("ciphertext"), what="its ciphertext")
    if not 8 <= len(salt) <= 64 or len(nonce) != nacl.secret.SecretBox.NONCE_SIZE:
        raise VerificationError("its salt or nonce has the wrong length")
    return salt, nonce, ciphertext, (numbers[0], numbers[1], numbers[2])


def _parse_plain(plain: bytes) -> SigningKey:
    try:
        key = serialization.load_der_private_key(plain, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _damaged("what it encrypts is no private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else type(key).__name__
        raise SignatureError(
            f"this is a private key of another type ({kind})",
            hint=f"only ECDSA on P-256 signs both of cosign's forms; {_GENERATE}",
        )
    return SigningKey(key)


def _damaged(what: str) -> SignatureError:
    return SignatureError(
        f"the private key is damaged: {what}", hint=f"restore it from a copy, or {_GENERATE}"
    )


def _derive(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=_SCRYPT_MEMORY_BYTES, dklen=32)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

"""The key of the device: made on its first start, kept in the state folder, never leaves it.

It signs the audit log. The secret that prompts are hashed with is derived from it, so that there is one file to guard.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

KEY_FILE: Final = "device.key"
_LONGEST_BYTES: Final = 4096
_PROMPTS: Final = b"edgeserve audit: prompts 1"
_HASH: Final = ec.ECDSA(hashes.SHA256())


class DeviceKeyError(Exception):
    """The key cannot be used; the message says why on one line."""


class DeviceKey:
    """An ECDSA key on P-256."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        public = key.public_key()
        self.public_pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.fingerprint = hashlib.sha256(der).hexdigest()
        number = key.private_numbers().private_value.to_bytes(32, "big")
        self._secret = hmac.digest(number, _PROMPTS, "sha256")

    def sign(self, data: bytes) -> bytes:
        """Sign with SHA-256; the signature is ASN.1 DER."""
        return self._key.sign(data, _HASH)

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        """Say whether a signature is this key's over these bytes."""
        try:
            self._key.public_key().verify(signature, data, _HASH)
        except InvalidSignature:
            return False
        return True

    def hash_prompt(self, tokens: Sequence[int]) -> str:
        """Hash a prompt so that equal prompts are seen to be equal, and none can be guessed without the device's key.

        Returns:
            HMAC-SHA-256 in hexadecimal over the token ids, four bytes each, little endian.
        """
        return hmac.digest(self._secret, struct.pack(f"<{len(tokens)}I", *tokens), "sha256").hex()


def load_key(folder: Path) -> DeviceKey:
    """Read the key.

    Raises:
        FileNotFoundError: There is none.
        DeviceKeyError: It cannot be read, others can read it, or it is no such key.
    """
    path = folder / KEY_FILE
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(_LONGEST_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DeviceKeyError(f"{path} cannot be read: {error.strerror or error}") from error
    # The group may: Kubernetes' fsGroup gives it every file of a volume.
    if mode & stat.S_IRWXO:
        raise DeviceKeyError(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); make it 0600")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeviceKeyError(f"{path} is not a private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DeviceKeyError(f"{path} is not an ECDSA key on P-256")
    return DeviceKey(key)


def make_key(folder: Path) -> DeviceKey:
    """Make a key and keep it, whole or not at all; the caller sees to it that no other process does so too.

    Raises:
        DeviceKeyError: It cannot be written.
    """
    made = ec.generate_private_key(ec.SECP256R1())
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path, draft = folder / KEY_FILE, folder / f".{KEY_FILE}"
    try:
        _write_private(draft, pem)
        draft.rename(path)
        sync_folder(folder)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise DeviceKeyError(f"{path} cannot be written: {error.strerror or error}") from error
    return DeviceKey(made)


def _write_private(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Verifying, with edgebuild's errors: `edgeverify` over a registry or a layout.

What is verified and how is written in `edgeverify` alone, so that a device decides as edgebuild does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from edgebuild.errors import SignatureError
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.progress import Progress
from edgebuild.registry.faults import RefusedError
from edgeverify.errors import VerificationError
from edgeverify.image import MANIFEST_BYTES, Referrer, verify_image
from edgeverify.keys import PEM_BYTES, load_public_key
from edgeverify.layout import verify_layout
from edgeverify.tree import Verified, verify_tree


class NotVerifiedError(SignatureError):
    """Something does not verify.

    Attributes:
        reasons: Where several candidates were tried, what was wrong with each, one line each.
    """

    def __init__(self, message: str, *, hint: str = "", reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.reasons = reasons


class RegistryReader(Protocol):
    """What verifying reads from a repository of a registry."""

    def get_manifest(self, reference: str) -> bytes | None:
        """Read a manifest by tag or "sha256:<hex>"; None when it is not there."""
        ...

    def list_referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        """List what the referrers API knows; empty where there is none."""
        ...

    def get_blob(self, digest: Digest) -> Iterator[bytes]:
        """Read a blob piece by piece."""
        ...


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """An `edgeverify.TreeSource` over a repository.

    A blob that the registry does not have counts against its candidate; any other failure of the registry ends the
    verification as the `RegistryError` that it is, since nothing was found out about the image.

    Attributes:
        reader: The repository.
        progress: Told of the bytes read.
    """

    reader: RegistryReader
    progress: Progress

    def manifest(self, reference: str) -> bytes | None:
        """Give a manifest or index; None when it is not there."""
        raw = self.reader.get_manifest(reference)
        if raw is not None and len(raw) > MANIFEST_BYTES:
            raise VerificationError(f"the manifest {reference} has more than {MANIFEST_BYTES} bytes")
        return raw

    def referrers(self, digest: str) -> tuple[Referrer, ...]:
        """Give what the registry lists."""
        return tuple(
            Referrer(digest=str(item.digest), artifact_type=item.artifact_type)
            for item in self.reader.list_referrers(Digest.parse(digest))
        )

    def blob(self, digest: str, *, max_bytes: int) -> bytes:
        """Give a small blob, and stop reading beyond `max_bytes`."""
        data = bytearray()
        for chunk in self._read(digest):
            data += chunk
            if len(data) > max_bytes:
                raise VerificationError(f"the blob {digest} has more than {max_bytes} bytes")
        return bytes(data)

    def chunks(self, digest: str) -> Iterator[bytes]:
        """Give a blob piece by piece."""
        with self.progress.task(f"verify blob {digest[7:19]}") as task:
            for chunk in self._read(digest):
                task.advance(len(chunk))
                yield chunk

    def _read(self, digest: str) -> Iterator[bytes]:
        try:
            yield from self.reader.get_blob(Digest.parse(digest))
        except RefusedError as error:
            if error.status != 404:
                raise
            raise VerificationError(f"the blob {digest} is not there") from error


def load_verifying_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public key file.

    Raises:
        SignatureError: It cannot be read, or holds no ECDSA P-256 public key.
    """
    hint = "give the public key that belongs to the signer, e.g. cosign.pub"
    try:
        with path.open("rb") as file:
            return load_public_key(file.read(PEM_BYTES + 1))
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    except VerificationError as error:
        raise SignatureError(f"{path}: {error.message}", hint=hint) from error


def verify_in_registry(
    reader: RegistryReader,
    digest: Digest,
    key: ec.EllipticCurvePublicKey,
    *,
    progress: Progress,
    reference: str | None = None,
    hash_blobs: bool = True,
) -> Verified:
    """Verify an image in a registry: index, every platform's manifest, every blob.

    Args:
        reader: Its repository.
        digest: What its tag names, or what was asked for.
        key: From `load_verifying_key`.
        progress: Told of the bytes read.
        reference: "HOST/REPO:TAG" that a signature of `digest` itself must name, so that a registry cannot answer for
            one tag with the signed image of another; only the older form can say it. None asks for none.
        hash_blobs: False leaves the blobs to whoever pulls them.

    Raises:
        NotVerifiedError: A signature is missing or wrong, or bytes are missing or others.
        RegistryError: The registry refused, failed or lied.
    """
    source = RegistrySource(reader, progress)
    try:
        if reference is not None:
            verify_image(source, str(digest), key, reference=reference)
        return verify_tree(source, str(digest), key, hash_blobs=hash_blobs)
    except VerificationError as error:
        raise _not_verified(error) from error


def verify_in_layout(path: Path, key: ec.EllipticCurvePublicKey) -> tuple[Verified, ...]:
    """Verify every image of a layout: indexes, every platform's manifest, every blob.

    Raises:
        NotVerifiedError: A signature is missing or wrong, or bytes are missing or others.
    """
    try:
        return verify_layout(path, key)
    except VerificationError as error:
        raise _not_verified(error) from error


def _not_verified(error: VerificationError) -> NotVerifiedError:
    return NotVerifiedError(
        error.message,
        hint="do not run it; check that the key is the signer's, and ask whoever published the image to sign it",
        reasons=error.reasons,
    )

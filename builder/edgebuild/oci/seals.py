"""Seals: what is known of a file that has not changed since it was hashed, so that gigabytes are not hashed again."""

from pathlib import Path
from typing import Protocol

from edgebuild.oci.blob import Blob, FileRange, Part
from edgebuild.oci.digest import Digest

WHOLE_FILE = "file"


class Seals(Protocol):
    """A memory of digests, each bound to a file's identity, size and times. The store keeps one.

    `tag` names what was hashed: the file itself or something made of it.
    """

    def known_digest(self, path: Path, tag: str) -> Digest | None:
        """Return what was remembered of `path`, or None when it is unknown or the file has changed."""
        ...

    def remember_digest(self, path: Path, tag: str, digest: Digest) -> None:
        """Remember that `path`, as it lies there now, gives `digest`."""
        ...


class NoSeals:
    """Remembers nothing, so that everything is hashed."""

    def known_digest(self, path: Path, tag: str) -> Digest | None:
        """Know nothing."""
        del path, tag
        return None

    def remember_digest(self, path: Path, tag: str, digest: Digest) -> None:
        """Forget it."""


def known_blob_digest(blob: Blob, seals: Seals) -> Digest | None:
    """Return the digest of a blob that takes bytes of exactly one file, when that file has not changed since."""
    sealed = _sealed_part(blob)
    return None if sealed is None else seals.known_digest(*sealed)


def remember_blob_digest(blob: Blob, seals: Seals, digest: Digest) -> None:
    """Remember the digest of a blob that takes bytes of exactly one file; of others there is nothing to remember."""
    sealed = _sealed_part(blob)
    if sealed is not None:
        seals.remember_digest(*sealed, digest)


def _sealed_part(blob: Blob) -> tuple[Path, str] | None:
    if len(blob.files) != 1:
        return None
    (file,) = blob.files
    if blob.parts == (file,):
        return file, WHOLE_FILE
    # The frame names what is taken of the file and what surrounds it: literal bytes as they are, the file or a range of
    # it as an empty place between them.
    return file, f"framed {Digest.of(b''.join(map(_frame, blob.parts))).short}"


def _frame(part: Part) -> bytes:
    if isinstance(part, Path):
        return b"file\n"
    if isinstance(part, FileRange):
        return b"range %d %d\n" % (part.offset_bytes, part.size_bytes)
    return b"%d\n%b" % (len(part), part)

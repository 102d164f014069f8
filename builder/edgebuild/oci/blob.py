"""Blobs: bytes on their way into a layout or a registry, read once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes made of parts, one after the other: literal bytes and whole files.

    A layer in the store is one file; a model's layer is the tar header, the user's file and the padding, so that the
    file is never copied before it reaches its place.

    Attributes:
        parts: Literal bytes, or absolute paths of regular files.
        size_bytes: Sum of the parts.
    """

    parts: tuple[bytes | Path, ...]
    size_bytes: int

    @classmethod
    def of_bytes(cls, data: bytes) -> "Blob":
        """Wrap literal bytes."""
        return cls((data,), len(data))

    @classmethod
    def of_file(cls, path: Path) -> "Blob":
        """Wrap a whole file.

        Raises:
            OSError: It is not there.
        """
        return cls((path,), path.stat().st_size)

    def chunks(self, *, offset_bytes: int = 0) -> Iterator[bytes]:
        """Yield the bytes from `offset_bytes` on, at most `CHUNK_BYTES` at a time.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file is shorter or longer than it was when the blob was made.
        """
        skip = offset_bytes
        given = 0
        for part in self.parts:
            if isinstance(part, bytes):
                rest = part[skip:]
                skip = max(0, skip - len(part))
                given += len(rest)
                if rest:
                    yield rest
                continue
            with part.open("rb") as file:
                length = file.seek(0, 2)
                if skip >= length:
                    skip -= length
                    continue
                file.seek(skip)
                skip = 0
                while chunk := file.read(CHUNK_BYTES):
                    given += len(chunk)
                    yield chunk
        if given != max(0, self.size_bytes - offset_bytes):
            raise ValueError(
                f"a file changed while it was read: {given + offset_bytes} bytes instead of {self.size_bytes}"
            )

    def read(self) -> bytes:
        """Return all bytes; for small blobs."""
        return b"".join(self.chunks())

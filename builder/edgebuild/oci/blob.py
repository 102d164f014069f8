"""Blobs: bytes on their way into a layout or a registry, read once."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What the file system says of a file; any change of its bytes changes it.

    Attributes:
        device: The file system.
        inode: Number of the file in it.
        size_bytes: Its length.
        mtime_ns: Last change of its bytes, in nanoseconds since 1970.
        ctime_ns: Last change of its bytes or properties; cannot be set by programs.
    """

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileStamp":
        """Take it from what the file system said."""
        return cls(
            device=status.st_dev,
            inode=status.st_ino,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRange:
    """Bytes of a file that was looked into to choose them: they mean something only while the file is what it was.

    Attributes:
        path: Absolute path of a regular file.
        offset_bytes: Where they begin.
        size_bytes: How many; at least 1.
        stamp: What the file was when they were chosen.
    """

    path: Path
    offset_bytes: int
    size_bytes: int
    stamp: FileStamp


Part = bytes | Path | FileRange


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes made of parts, one after the other: literal bytes, whole files and ranges of files.

    A layer in the store is one file; a model's layer is the tar header, the user's file or a part of it and the padding,
    so that the file is never copied before it reaches its place.

    Attributes:
        parts: Literal bytes, absolute paths of regular files, or ranges of such files.
        size_bytes: Sum of the parts.
    """

    parts: tuple[Part, ...]
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

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that bytes are taken from, each once."""
        paths = (part.path if isinstance(part, FileRange) else part for part in self.parts)
        return tuple(dict.fromkeys(path for path in paths if isinstance(path, Path)))

    def chunks(self, *, offset_bytes: int = 0) -> Iterator[bytes]:
        """Yield the bytes from `offset_bytes` on, at most `CHUNK_BYTES` at a time.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file is shorter or longer than it was when the blob was made, or one that ranges were chosen
                from has changed.
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
            with _Reading(part) as reading:
                if skip >= reading.size_bytes:
                    skip -= reading.size_bytes
                    continue
                for chunk in reading.chunks(skip):
                    given += len(chunk)
                    yield chunk
                skip = 0
        if given != max(0, self.size_bytes - offset_bytes):
            raise ValueError(
                f"a file changed while it was read: {given + offset_bytes} bytes instead of {self.size_bytes}"
            )

    def read(self) -> bytes:
        """Return all bytes; for small blobs."""
        return b"".join(self.chunks())


class _Reading:
    """A file, or a range of it, while it is read."""

    def __init__(self, part: Path | FileRange) -> None:
        self._part = part
        self._file = (part.path if isinstance(part, FileRange) else part).open("rb")
        self._begin = part.offset_bytes if isinstance(part, FileRange) else 0
        self.size_bytes = part.size_bytes if isinstance(part, FileRange) else self._file.seek(0, 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def chunks(self, skip: int) -> Iterator[bytes]:
        """Yield the bytes from `skip` on: of a whole file to its end, wherever that is now."""
        self._check()
        self._file.seek(self._begin + skip)
        is_whole, left = isinstance(self._part, Path), self.size_bytes - skip
        while chunk := self._file.read(CHUNK_BYTES if is_whole else min(CHUNK_BYTES, left)):
            left -= len(chunk)
            yield chunk
        self._check()

    def _check(self) -> None:
        if isinstance(self._part, FileRange):
            found = FileStamp.of(os.fstat(self._file.fileno()))
            if found != self._part.stamp:
                raise ValueError(f"{self._part.path} changed since its header was read")

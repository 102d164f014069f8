"""A file on its way into the store: written in order and hashed as its bytes come, so that no second pass is needed."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

from edgebuild.artifacts.files import store_fault
from edgebuild.oci.blob import CHUNK_BYTES
from edgebuild.oci.digest import Digest
from edgebuild.progress import Task


class Arrival:
    """What has come so far. The scratch file always holds a beginning of the file: what an earlier run left is taken up."""

    def __init__(self, path: Path, task: Task) -> None:
        """Name the scratch file.

        Args:
            path: Absolute path; its folder is there. Nobody else writes to it.
            task: Told of the bytes, those of an earlier run included.
        """
        self._path = path
        self._task = task
        self._state = hashlib.sha256()
        self._size_bytes = 0
        self._shown_bytes = 0

    def __enter__(self) -> Self:
        """Open the scratch file and hash what it holds.

        Raises:
            StoreError: It cannot be opened.
        """
        try:
            # Unbuffered: what has come is there for the next run however this one ends.
            self._file = self._path.open("a+b", buffering=0)
            self._file.seek(0)
            while chunk := self._file.read(CHUNK_BYTES):
                self._count(chunk)
        except OSError as error:
            raise store_fault(self._path.parent, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def size_bytes(self) -> int:
        """Bytes that are there."""
        return self._size_bytes

    @property
    def digest(self) -> Digest:
        """sha256 of what is there."""
        return Digest(self._state.hexdigest())

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            StoreError: The disk is full, or cannot be written.
        """
        rest = memoryview(chunk)
        try:
            while rest:
                written = self._file.write(rest)
                self._count(rest[:written])
                rest = rest[written:]
        except OSError as error:
            raise store_fault(self._path.parent, error) from error

    def restart(self) -> None:
        """Forget what has come."""
        self._file.truncate(0)
        self._state = hashlib.sha256()
        self._size_bytes = 0

    def _count(self, chunk: bytes | memoryview) -> None:
        self._state.update(chunk)
        self._size_bytes += len(chunk)
        if self._size_bytes > self._shown_bytes:
            self._task.advance(self._size_bytes - self._shown_bytes)
            self._shown_bytes = self._size_bytes

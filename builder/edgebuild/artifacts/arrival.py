"""A file on its way into the store: written in order and hashed as its bytes come, so that no second pass is needed.

1. What is in the store is not fetched.
2. Bytes go to a scratch file, which always holds a beginning of the file; a later run goes on where this one ended.
3. A file whose hash is another is removed and fetched once more from the start; a server that lies twice is named.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edgebuild.artifacts.files import size_so_far, store_fault
from edgebuild.artifacts.store import Store
from edgebuild.errors import EdgebuildError
from edgebuild.oci.blob import CHUNK_BYTES
from edgebuild.oci.digest import Digest
from edgebuild.progress import Progress, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A file that is to come.

    Attributes:
        digest: Its sha256.
        file: The name it gets in the store.
        size_bytes: Its length, or 0 when unknown.
        title: For progress, e.g. "ziglang 0.17.1".
        begun: A file on the store's disk that holds its beginning, which is taken away; or None.
    """

    digest: Digest
    file: str
    size_bytes: int
    title: str
    begun: Path | None = None


def receive(
    expected: Expected,
    *,
    store: Store,
    progress: Progress,
    fetch: Callable[["Arrival", Task], None],
    other: Callable[[Digest], EdgebuildError],
) -> Path:
    """Return the file's path in the store, fetching it if it is not there.

    Args:
        expected: The file.
        store: Takes it.
        progress: Told of the bytes that arrive.
        fetch: Writes what is missing, to the end of the file.
        other: Makes the error for a file whose sha256 is the one given.

    Raises:
        EdgebuildError: That of `other`, or what `fetch` raises.
        StoreError: The disk is full.
    """
    # Step 1.
    if (found := store.find_download(expected.digest, expected.file)) is not None:
        return found

    def build(folder: Path) -> None:
        # Step 2.
        partial = store.scratch("partial") / expected.digest.hex
        if expected.begun is not None and size_so_far(expected.begun) > size_so_far(partial):
            expected.begun.replace(partial)
        with progress.task(f"download {expected.title}", total_bytes=expected.size_bytes or None) as task:
            for last in (False, True):
                with Arrival(partial, task) as arrival:
                    fetch(arrival, task)
                    digest = arrival.digest
                if digest == expected.digest:
                    break
                # Step 3. What an earlier run left may be broken, or a proxy may have cut and patched.
                partial.unlink()
                if last:
                    raise other(digest)
        partial.chmod(0o644)
        partial.rename(folder / expected.file)

    entry = store.make("download", expected.digest, build, hashed={expected.file: expected.digest})
    return store.find_download(expected.digest, expected.file) or entry / expected.file


class Arrival:
    """What has come so far of a file; what an earlier run left is taken up."""

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

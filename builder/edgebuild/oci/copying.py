"""Copying and hashing at once: the kernel copies in one thread while another hashes what has arrived.

What is hashed is the copy, not the source: the digest is true of the bytes that stay, whatever happens to the source
meanwhile. The copy is mapped, so that what the kernel has just written is hashed where it lies, in the page cache: no
disk access, no second copy through a buffer, and a source on a slow disk is read once.
"""

import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from edgebuild.errors import ToolError
from edgebuild.oci.blob import CHUNK_BYTES, Blob, FileRange, FileStamp
from edgebuild.oci.digest import Digest
from edgebuild.progress import Task

# Short enough that the hashing thread stays close behind and finds the bytes in the processor's caches.
_STEP_BYTES = 4 << 20
# Below this a second thread costs more than it saves.
_THREAD_FROM_BYTES = 8 << 20
# What says that a way of copying does not serve for these two files, not that the disk is full or broken.
_NOT_THIS_WAY = frozenset(
    {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTSOCK}
)
# All pages of a step are mapped at once, instead of one fault for each; only Linux can.
_MAPPED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)

Way = Callable[[int, int, int, int, int], int]


def by_range(source: int, destination: int, count: int, offset: int, at: int) -> int:
    """Copy inside the kernel: copy_file_range(2)."""
    return os.copy_file_range(source, destination, count, offset, at)


def by_sendfile(source: int, destination: int, count: int, offset: int, at: int) -> int:
    """Copy inside the kernel, between file systems that copy_file_range refuses: sendfile(2)."""
    os.lseek(destination, at, os.SEEK_SET)
    return os.sendfile(destination, source, offset, count)


def by_hand(source: int, destination: int, count: int, offset: int, at: int) -> int:
    """Copy through a buffer."""
    return os.pwrite(destination, os.pread(source, min(count, CHUNK_BYTES), offset), at)


# Best first.
WAYS: tuple[Way, ...] = (
    *((by_range,) if hasattr(os, "copy_file_range") else ()),
    by_sendfile,
    by_hand,
)


def copy_hashed(
    blob: Blob,
    destination: int,
    task: Task,
    *,
    ways: tuple[Way, ...] = WAYS,
    stop: threading.Event | None = None,
) -> Digest:
    """Write a blob to an empty file and return the digest of what the file then holds.

    Memory is bounded by a buffer of 1 MiB for each of the two threads; what is mapped belongs to the page cache.

    Args:
        blob: The bytes.
        destination: Descriptor of an empty file, open for reading and writing.
        task: Told of the bytes that are written and hashed.
        ways: How large files are copied; the first that works is taken.
        stop: Ends the copying soon when it is set.

    Raises:
        ToolError: A source file cannot be read or changes while it is copied, or the copying was stopped.
        OSError: The destination cannot be written.
    """
    state = _State(destination, task, stop or threading.Event())
    for part in blob.parts:
        if isinstance(part, bytes):
            state.append(part)
        else:
            _append_file(part, state, ways)
    if state.length != blob.size_bytes:
        files = ", ".join(map(str, blob.files))
        raise _changed(files, f": {state.length} bytes instead of {blob.size_bytes}")
    return Digest(state.hash.hexdigest())


class _State:
    """How far the destination has come."""

    def __init__(self, destination: int, task: Task, stop: threading.Event) -> None:
        self.destination = destination
        self.task = task
        self.stop = stop
        self.hash = hashlib.sha256()
        self.length = 0

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.destination, view, self.length)
            self.hash.update(view[:written])
            self.length += written
            self.task.advance(written)
            view = view[written:]


def _changed(file: object, how: str = "") -> ToolError:
    return ToolError(f"{file} changed while it was copied{how}", hint="let nothing write to it and try again")


def _append_file(part: Path | FileRange, state: _State, ways: tuple[Way, ...]) -> None:
    path = part.path if isinstance(part, FileRange) else part
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ToolError(f"{path} cannot be read: {error.strerror}") from error
    try:
        before = FileStamp.of(os.fstat(source))
        offset, size_bytes = 0, before.size_bytes
        if isinstance(part, FileRange):
            if before != part.stamp:
                raise _changed(path)
            offset, size_bytes = part.offset_bytes, part.size_bytes
        if size_bytes < _THREAD_FROM_BYTES:
            _append_small(source, offset, size_bytes, state)
        else:
            _append_large(_Copy(path, source, offset, size_bytes, state, ways), state)
        if FileStamp.of(os.fstat(source)) != before or os.pread(source, 1, before.size_bytes):
            raise _changed(path)
    finally:
        os.close(source)


def _append_small(source: int, offset: int, size_bytes: int, state: _State) -> None:
    end = offset + size_bytes
    while offset < end and (data := os.pread(source, min(CHUNK_BYTES, end - offset), offset)):
        state.append(data)
        offset += len(data)


def _append_large(copy: "_Copy", state: _State) -> None:
    """Copy in a second thread and hash in this one, which is also the one that an interrupt reaches."""
    hashed = 0
    with copy:
        while hashed < copy.size_bytes:
            ready = copy.wait_beyond(hashed)
            while hashed < ready:
                if state.stop.is_set():
                    raise ToolError("the copying was stopped")
                count = min(_STEP_BYTES, ready - hashed)
                for piece in _pieces(state.destination, state.length + hashed, count):
                    state.hash.update(piece)
                    state.task.advance(len(piece))
                hashed += count
    state.length += copy.size_bytes


def _pieces(descriptor: int, offset: int, count: int) -> Iterator[memoryview]:
    """Yield some bytes of a file, mapped where its file system can; each piece is gone when the next is asked for."""
    before = offset % mmap.ALLOCATIONGRANULARITY
    try:
        mapped = mmap.mmap(
            descriptor, before + count, flags=_MAPPED, prot=mmap.PROT_READ, offset=offset - before
        )
    except (OSError, ValueError) as error:
        # ValueError: the file is shorter than that, which reading tells.
        if isinstance(error, OSError) and error.errno not in (errno.ENODEV, errno.EINVAL, errno.EACCES):
            raise
        yield from _read(descriptor, offset, count)
        return
    with mapped, memoryview(mapped) as view:
        for start in range(before, before + count, CHUNK_BYTES):
            with view[start : min(start + CHUNK_BYTES, before + count)] as piece:
                yield piece


def _read(descriptor: int, offset: int, count: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    end = offset + count
    while offset < end:
        read = os.preadv(descriptor, [buffer[: min(CHUNK_BYTES, end - offset)]], offset)
        if not read:
            raise OSError(errno.EIO, "the copy became shorter while it was hashed")
        yield buffer[:read]
        offset += read


class _Copy(threading.Thread):
    """Copies a file, or a part of it, behind what a destination holds, and says how far it is.

    Leaving its context stops and awaits it.
    """

    def __init__(
        self, path: Path, source: int, offset: int, size_bytes: int, state: _State, ways: tuple[Way, ...]
    ) -> None:
        super().__init__(name="copy", daemon=True)
        self.size_bytes = size_bytes
        self._path = path
        self._source = source
        self._from = offset
        self._destination = state.destination
        self._at = state.length
        self._ways = list(ways)
        self._copied = 0
        self._stopped = False
        self._failure: BaseException | None = None
        self._condition = threading.Condition()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self.join()

    def wait_beyond(self, offset: int) -> int:
        """Return how many bytes are copied, once they are more than `offset`.

        Raises:
            ToolError: The source became shorter.
            OSError: The copying failed.
        """
        with self._condition:
            while self._copied <= offset:
                if self._failure is not None:
                    raise self._failure
                self._condition.wait()
            return self._copied

    def run(self) -> None:
        """Copy until all is done, something fails or nobody waits any more."""
        try:
            while self._copied < self.size_bytes and not self._stopped:
                count = self._step()
                with self._condition:
                    self._copied += count
                    self._condition.notify_all()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            with self._condition:
                self._failure = error
                self._condition.notify_all()

    def _step(self) -> int:
        """Copy some bytes in the first way that works, dropping those that do not serve for these two files."""
        count = min(_STEP_BYTES, self.size_bytes - self._copied)
        while True:
            last = len(self._ways) == 1
            done = 0
            try:
                done = self._ways[0](
                    self._source,
                    self._destination,
                    count,
                    self._from + self._copied,
                    self._at + self._copied,
                )
            except OSError as error:
                if last or error.errno not in _NOT_THIS_WAY:
                    raise
            if done:
                return done
            if last:
                raise _changed(self._path)
            # Some file systems answer 0 to a way they cannot serve (copy_file_range(2), "BUGS").
            del self._ways[0]

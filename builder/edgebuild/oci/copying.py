"""Copying and hashing at once: of a large file one thread reads and writes while another hashes the same buffers.

What is hashed is what was written, not the source: the digest is true of the bytes that stay, whatever happens to the
source meanwhile. Buffers are small and few, so that what was read is still in the processor's caches when it is written
and hashed.
"""

import hashlib
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from edgebuild.errors import ToolError
from edgebuild.oci.blob import CHUNK_BYTES, Blob, FileRange, FileStamp
from edgebuild.oci.digest import Digest
from edgebuild.progress import Task

# Below this a second thread costs more than it saves.
_THREAD_FROM_BYTES = 8 << 20
_BUFFERS = 4
_BUFFER_BYTES = 512 << 10


def copy_hashed(blob: Blob, destination: int, task: Task, *, stop: threading.Event | None = None) -> Digest:
    """Write a blob to an empty file and return the digest of what was written.

    Memory is bounded by 2 MiB of buffers.

    Args:
        blob: The bytes.
        destination: Descriptor of an empty file, open for writing.
        task: Told of the bytes that are written and hashed.
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
            _append_file(part, state)
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

    def append(self, data: bytes | memoryview) -> None:
        """Write and hash some bytes."""
        _write(self.destination, data, self.length)
        self.count(data)

    def count(self, written: bytes | memoryview) -> None:
        """Hash what was written."""
        if self.stop.is_set():
            raise ToolError("the copying was stopped")
        self.hash.update(written)
        self.length += len(written)
        self.task.advance(len(written))


def _write(destination: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(destination, view, at)
        at += written
        view = view[written:]


def _changed(file: object, how: str = "") -> ToolError:
    return ToolError(f"{file} changed while it was copied{how}", hint="let nothing write to it and try again")


def _unreadable(path: Path, error: OSError) -> ToolError:
    return ToolError(f"{path} cannot be read: {error.strerror}")


def _append_file(part: Path | FileRange, state: _State) -> None:
    path = part.path if isinstance(part, FileRange) else part
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        before = FileStamp.of(os.fstat(source))
        offset, size_bytes = 0, before.size_bytes
        if isinstance(part, FileRange):
            if before != part.stamp:
                raise _changed(path)
            offset, size_bytes = part.offset_bytes, part.size_bytes
        reading = _Source(path, source, offset, size_bytes)
        if size_bytes < _THREAD_FROM_BYTES:
            buffer = memoryview(bytearray(min(CHUNK_BYTES, size_bytes)))
            while data := reading.next(buffer):
                state.append(data)
        else:
            with _Copy(reading, state.destination, at=state.length) as copy:
                for data in copy.written():
                    state.count(data)
        if FileStamp.of(os.fstat(source)) != before or os.pread(source, 1, before.size_bytes):
            raise _changed(path)
    finally:
        os.close(source)


class _Source:
    """A file, or a part of it, while it is copied; `Blob.chunks` makes new bytes of each piece, this fills a buffer again and again."""

    def __init__(self, path: Path, source: int, offset: int, size_bytes: int) -> None:
        self._path = path
        self._source = source
        self._offset = offset
        self._end = offset + size_bytes

    def next(self, buffer: memoryview) -> memoryview:
        """Read what comes next into a buffer and return the part that it fills; it is empty at the end.

        Raises:
            ToolError: It cannot be read, or became shorter.
        """
        view = buffer[: self._end - self._offset]
        if view:
            try:
                count = os.preadv(self._source, [view], self._offset)
            except OSError as error:
                raise _unreadable(self._path, error) from error
            if not count:
                raise _changed(self._path)
            self._offset += count
            view = view[:count]
        return view


def _make_buffers() -> tuple[memoryview, ...]:
    """Cut one piece of memory that the kernel may take as one huge page, madvise(2).

    In many small pages the kernel copies more slowly, above all in virtual machines, where finding each costs two look-ups.
    """
    memory = mmap.mmap(-1, _BUFFERS * _BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel built without them says EINVAL.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    return tuple(view[at : at + _BUFFER_BYTES] for at in range(0, len(view), _BUFFER_BYTES))


class _Copy(threading.Thread):
    """Copies what is read behind what a destination holds, and hands out what it has written.

    Leaving its context stops and awaits it.
    """

    def __init__(self, reading: _Source, destination: int, *, at: int) -> None:
        super().__init__(name="copy", daemon=True)
        self._reading = reading
        self._destination = destination
        self._at = at
        # A buffer goes round: filled, written, handed out, empty again. None says that nobody wants more.
        self._empty: SimpleQueue[memoryview | None] = SimpleQueue()
        self._written: SimpleQueue[tuple[memoryview, int] | BaseException | None] = SimpleQueue()
        for buffer in _make_buffers():
            self._empty.put(buffer)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._empty.put(None)
        self.join()

    def written(self) -> Iterator[memoryview]:
        """Yield what is written, in order; each piece is gone when the next is asked for.

        Raises:
            ToolError: The source cannot be read, or became shorter.
            OSError: The destination cannot be written.
        """
        while (item := self._written.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            buffer, count = item
            yield buffer[:count]
            self._empty.put(buffer)

    def run(self) -> None:
        """Copy until all is done, something fails or nobody wants more."""
        try:
            while (buffer := self._empty.get()) is not None and (data := self._reading.next(buffer)):
                _write(self._destination, data, self._at)
                self._at += len(data)
                self._written.put((buffer, len(data)))
            self._written.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._written.put(error)

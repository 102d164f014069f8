"""Reads the end of a file, to continue the chain after whatever ended the last run, a power failure included."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeserve.audit.device_key import DeviceKey
from edgeserve.audit.errors import AuditError
from edgeserve.audit.lines import FORMAT, SIGNATURE, Head, read_line, split_signature

_Bytes = bytes | mmap.mmap


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of a file; `good_bytes` end with the last line that continues the chain, of `size_bytes`."""

    log_id: str
    head: Head
    checkpoint: Head
    good_bytes: int
    size_bytes: int


def read_end(path: Path, key: DeviceKey) -> End | None:
    """Follow the chain from the last signed line on.

    What a signature covers was on the disk before it was made known; what follows may be torn, or never have arrived.

    Returns:
        The end; None when not even the first line is whole.

    Raises:
        AuditError: The file is no audit log, or not one of this device.
        OSError: It cannot be read.
    """
    with _mapped(path) as data:
        first = data.find(b"\n")
        if first < 0:
            return None
        log_id = _log_id(path, data[:first])
        start, end = _last_signed(data)
        checkpoint, parts = read_line(data[start:end]), split_signature(data[start:end])
        if checkpoint is None or parts is None or not key.has_signed(*parts):
            raise AuditError(
                f"{path}: its last signed line is not by this device's key; move the log away or the key back"
            )
        head, good = _follow(data, checkpoint[0], end + 1)
        return End(log_id=log_id, head=head, checkpoint=checkpoint[0], good_bytes=good, size_bytes=len(data))


def read_last_line(path: Path) -> Head | None:
    """Read the last line of a file; None when it is no line."""
    with _mapped(path) as data:
        end = data.rfind(b"\n")
        found = read_line(data[data.rfind(b"\n", 0, end) + 1 : end]) if end >= 0 else None
    return None if found is None else found[0]


def _follow(data: _Bytes, head: Head, at: int) -> tuple[Head, int]:
    """Return the last line that continues the chain, and where it ends."""
    while (stop := data.find(b"\n", at)) >= 0:
        found = read_line(data[at:stop])
        if found is None or found[0].line != head.line + 1 or found[1].get("previous") != head.digest:
            break
        head, at = found[0], stop + 1
    return head, at


@contextmanager
def _mapped(path: Path) -> Iterator[_Bytes]:
    """Give the bytes of a file without holding them in memory."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _log_id(path: Path, line: bytes) -> str:
    """Read the name of the log from the first line of a file."""
    header = read_line(line)
    if header is None or header[1].get("kind") != "file" or header[1].get("format") != FORMAT:
        raise AuditError(f"{path}:1: not the beginning of an audit log of format {FORMAT}")
    return str(header[1].get("log"))


def _last_signed(data: _Bytes) -> tuple[int, int]:
    """Find the last complete line with a signature: where it starts, and where its newline is."""
    before = len(data)
    while (at := data.rfind(SIGNATURE, 0, before)) >= 0:
        end = data.find(b"\n", at)
        if end >= 0:
            return data.rfind(b"\n", 0, at) + 1, end
        before = at
    return 0, data.find(b"\n")

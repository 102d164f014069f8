"""The rules of one layer, checked on its bytes while they stream by (docs/design.md, "Anatomy of an image").

Shares no code with `oci/tar.py`: what a layer may be is said here a second time, from the reader's side.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

_EPOCH_S = 1577836800
_READ_BYTES = 1 << 17  # tarfile and zlib copy what is left of a piece for every header
_BLOCK_BYTES = 512
_PAX_LIMIT_BYTES = 1 << 20
_PAX_KEYS = frozenset({"path", "linkpath", "size"})
_SPECIAL_MODES = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777, "var/lib/edge": 0o1777}
_KINDS = {tarfile.REGTYPE: "file", tarfile.SYMTYPE: "link", tarfile.DIRTYPE: "directory"}
_NUMBERS = {"mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136}


class Kind(StrEnum):
    """What a member is."""

    FILE = "file"
    LINK = "link"
    DIRECTORY = "directory"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member, as far as rules across layers ask.

    Attributes:
        kind: What it is.
        mode: Permission bits.
        uid: Owner.
        gid: Group.
        mtime_s: Seconds since 1970.
        size_bytes: Of a file.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """What was found in a layer.

    Attributes:
        digest: sha256 of the blob, in hexadecimal.
        diff_id: sha256 of the archive, in hexadecimal; empty when it cannot be unpacked.
        members: By path without slashes at the ends.
        faults: Why it is no layer at all.
        format_faults: Rules of edgebuild's layers that it breaks; a base image's layers need not follow them.
    """

    digest: str
    diff_id: str
    members: Mapping[str, Member]
    faults: tuple[str, ...]
    format_faults: tuple[str, ...]


class LayerMemory(Protocol):
    """Knows layers that were read before, so that an unchanged blob is not read again. The store keeps one."""

    def recall(self, blob: Path, digest: str) -> LayerFacts | None:
        """Return what was found in a blob that has not changed since it was hashed, or None.

        Args:
            blob: Where it lies.
            digest: "sha256:<hex>" that it must have.
        """

    def remember(self, facts: LayerFacts) -> None:
        """Keep the facts of a layer without faults."""


def read_layer(path: Path, *, compressed: bool) -> LayerFacts:
    """Read a layer once, from its first byte to its last, and say all that is wrong with it.

    Args:
        path: The blob.
        compressed: Whether it is gzip.

    Raises:
        OSError: It cannot be read.
    """
    tally = _Tally()
    members: dict[str, Member] = {}
    faults: tuple[str, ...] = ()
    with path.open("rb") as file:
        reader = _GzipReader(file, tally) if compressed else _Reader(file)
        try:
            _read_members(reader, members, tally)
            diff_id = reader.inner.hexdigest()
        except (_UnreadableError, tarfile.TarError, zlib.error, ValueError) as error:
            faults = (f"cannot be unpacked: {error}",)
            diff_id = ""
        reader.drain_raw()
    _check_tree(members, tally)
    return LayerFacts(
        digest=reader.outer.hexdigest(),
        diff_id=diff_id,
        members=members,
        faults=faults,
        format_faults=tuple(tally.lines()),
    )


def shown(name: str) -> str:
    """Write a member's name on one line, whatever it holds."""
    return name if name.isprintable() else repr(name)[1:-1]


class _UnreadableError(Exception):
    """The bytes are no layer."""


class _Tally:
    """Counts the entries that break a rule, and names the first: one wrong writer breaks a rule in every entry."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}

    def add(self, rule: str, where: str = "") -> None:
        first, count = self._found.get(rule, (shown(where), 0))
        self._found[rule] = (first, count + 1)

    def lines(self) -> Iterator[str]:
        for rule, (first, count) in self._found.items():
            more = f" and {count - 1} more" if count > 1 else ""
            yield f"{rule}: {first}{more}" if first else f"{rule}{more}"


class _Reader:
    """An uncompressed layer, hashed while it is read. `read` is what tarfile asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.outer = hashlib.sha256()
        self.inner = self.outer
        self.length = 0
        self.last_nonzero = 0  # offset behind the last byte that is not 0

    def read(self, count: int) -> bytes:
        return self._seen(self._raw(count))

    def drain_raw(self) -> None:
        """Read what is left, for the digest."""
        while self._raw(_READ_BYTES):
            pass

    def _raw(self, count: int) -> bytes:
        data = self._file.read(count)
        self.outer.update(data)
        return data

    def _seen(self, data: bytes) -> bytes:
        if stripped := data.rstrip(b"\0"):
            self.last_nonzero = self.length + len(stripped)
        self.length += len(data)
        return data


class _GzipReader(_Reader):
    """A compressed layer: one gzip member without name and time (RFC 1952), never inflated as a whole."""

    def __init__(self, file: BinaryIO, tally: _Tally) -> None:
        super().__init__(file)
        self.inner = hashlib.sha256()
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._waiting = self._raw(_READ_BYTES)
        header = self._waiting[:10].ljust(10, b"\0")
        if header[3] != 0:
            tally.add("gzip header holds a name or other extras")
        if header[4:8] != bytes(4):
            tally.add("gzip header holds a time")

    def read(self, count: int) -> bytes:
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._waiting or self._raw(_READ_BYTES)
            self._waiting = b""
            if not data:
                raise _UnreadableError("gzip data end early")
            if inflated := self._inflate.decompress(data, count):
                self.inner.update(inflated)
                return self._seen(inflated)
        if self._inflate.unused_data or self._raw(1):
            raise _UnreadableError("bytes follow the gzip member")
        return b""


def _read_members(reader: _Reader, members: dict[str, Member], tally: _Tally) -> None:
    seen = 0

    def look(block: bytes, info: tarfile.TarInfo) -> None:
        nonlocal seen
        seen += 1
        _check_header(block, info, tally)

    end = 0
    previous = b""
    with tarfile.open(
        fileobj=reader,  # type: ignore[call-overload] # only `read` is asked for in stream mode
        mode="r|",
        bufsize=_READ_BYTES,
        tarinfo=_header_type(look),
        encoding="utf-8",
        errors="surrogateescape",
    ) as archive:
        for info in archive:
            name = info.name.encode(errors="surrogateescape")
            if name <= previous:
                tally.add("name comes twice" if info.name in members else "names are not sorted", info.name)
            previous = name
            members[info.name] = _member(info)
            _check_member(info, tally)
            size_bytes = info.size if info.isreg() else 0
            end = info.offset_data + -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
    # Nothing passes because tarfile came to read headers in yet another way.
    assert seen >= len(members), f"tarfile showed {seen} headers of {len(members)} members"
    while reader.read(_READ_BYTES):
        pass
    # tarfile takes a damaged header for the end; then more than zeros follow.
    if reader.last_nonzero > end:
        raise _UnreadableError(f"a damaged header or other bytes at offset {end} of the archive")
    if reader.length - end < 2 * _BLOCK_BYTES or reader.length % _BLOCK_BYTES:
        tally.add("does not end with two blocks of zeros")


def _header_type(look: Callable[[bytes, tarfile.TarInfo], None]) -> type[tarfile.TarInfo]:
    """Make a TarInfo that shows each header block before tarfile makes sense of it.

    Pythons with the fix of 2026 for AREGTYPE headers (Debian 12's since 3.11.2-6+deb12u8) parse blocks by `_frombuf`, which
    the public `frombuf` of theirs calls too; others by `frombuf` itself.
    """
    name = "_frombuf" if hasattr(tarfile.TarInfo, "_frombuf") else "frombuf"
    parse = getattr(tarfile.TarInfo, name).__func__

    def shown(cls: type[tarfile.TarInfo], buf: bytes, *rest: Any, **more: Any) -> tarfile.TarInfo:
        info: tarfile.TarInfo = parse(cls, buf, *rest, **more)
        look(bytes(buf), info)
        return info

    return type("Header", (tarfile.TarInfo,), {name: classmethod(shown)})


def _member(info: tarfile.TarInfo) -> Member:
    return Member(
        kind=Kind(_KINDS.get(info.type, "other")),
        mode=info.mode,
        uid=info.uid,
        gid=info.gid,
        mtime_s=info.mtime,
        size_bytes=info.size,
    )


def _check_header(block: bytes, info: tarfile.TarInfo, tally: _Tally) -> None:
    """Check what only the raw block shows: ustar with PAX records, no GNU or base-256 forms."""
    name = info.name
    if block[257:265] != b"ustar\x0000":
        tally.add("is not in ustar or PAX format", name)
    if info.type in {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE}:
        tally.add("uses a GNU extension", name)
    if info.type == tarfile.XGLTYPE:
        tally.add("has a global PAX header", name)
    if info.type not in _KINDS and info.size > _PAX_LIMIT_BYTES:
        raise _UnreadableError(f"an extended header of {info.size} bytes")
    if any(block[offset] & 0x80 for offset in _NUMBERS.values()):
        tally.add("holds a number in base 256", name)
    if not (block[:100] + block[157:257] + block[345:500]).isascii():
        tally.add("has a name beyond ASCII outside a PAX record", name)


def _check_member(info: tarfile.TarInfo, tally: _Tally) -> None:
    for rule, broken, detail in (*_naming(info), *_properties(info)):
        if broken:
            tally.add(rule, f"{info.name}{detail}")


def _naming(info: tarfile.TarInfo) -> Iterator[tuple[str, bool, str]]:
    parts = info.name.split("/")
    try:
        (info.name + info.linkname).encode()
        is_text = True
    except UnicodeEncodeError:
        is_text = False
    yield "name is not UTF-8", not is_text, ""
    yield "name is absolute or has an empty, '.' or '..' part", bool({"", ".", ".."} & set(parts)), ""
    yield "name is a whiteout", parts[-1].startswith(".wh."), ""
    yield "symbolic link leads nowhere", info.issym() and not info.linkname, ""


def _properties(info: tarfile.TarInfo) -> Iterator[tuple[str, bool, str]]:
    mode = f" ({info.mode:04o})"
    yield "owner is not 0:0", bool(info.uid or info.gid), ""
    yield "owner has a name", bool(info.uname or info.gname), ""
    yield f"time is not {_EPOCH_S}", info.mtime != _EPOCH_S, ""
    yield "has PAX records beyond path, linkpath and size", bool(set(info.pax_headers) - _PAX_KEYS), ""
    yield "is not a file, directory or symbolic link", info.type not in _KINDS, ""
    yield "mode of a file is neither 0644 nor 0755", info.isreg() and info.mode not in {0o644, 0o755}, mode
    wanted = _SPECIAL_MODES.get(info.name, 0o755)
    yield "mode of a directory is not the one of its path", info.isdir() and info.mode != wanted, mode


def _check_tree(members: Mapping[str, Member], tally: _Tally) -> None:
    for name in members:
        parent = name.rpartition("/")[0]
        if not parent:
            continue
        above = members.get(parent)
        if above is None:
            tally.add("parent directory is missing", name)
        elif above.kind is not Kind.DIRECTORY:
            tally.add("lies below what is no directory", name)

"""Layers as tar archives: the same tree gives the same bytes on every machine, at any time, for every user.

Rules of every archive (docs/design.md, "Anatomy of an image"), which `oci/check.py` enforces without this code:
names sorted bytewise, owner 0:0 without names, one constant time, modes by kind alone, every parent directory
present, files, directories and symbolic links only. A path's mode follows from the path and the kind, so that all
layers agree on a directory that several of them hold.
"""

import hashlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgebuild.errors import ImageError, ToolError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import CHUNK_BYTES, Blob
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Layer, Role

# 2020-01-01T00:00:00Z. A constant of the layer format: with a build's own time in it, every release and every change
# of the lock would send each layer, the gigabytes of the model above all, again.
LAYER_EPOCH_S = 1_577_836_800
GZIP_LEVEL = 6
# What gzip digests depend on besides the tree; diff_ids do not.
COMPRESSION = f"zlib {zlib.ZLIB_RUNTIME_VERSION} level {GZIP_LEVEL}"
MODEL_DIRECTORY = "models"

_BLOCK_BYTES = 512
ARCHIVE_END = bytes(2 * _BLOCK_BYTES)
_FIELD_BYTES = 100  # of name and linkname in a ustar header
_OCTAL_SIZE_LIMIT = 8**11  # 8 GiB: what eleven octal digits cannot hold
# A new named volume takes over the mode of the folder that it is mounted on: so the server, not root, can write there.
_MODES = {b"root": 0o700, b"tmp": 0o1777, b"var/tmp": 0o1777, b"var/lib/edge": 0o1777}
# RFC 1952: magic, deflate, no flags (so no name), mtime 0, no extra flags, operating system unknown.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A member: a directory unless it has content or a target.

    Attributes:
        path: Without a slash at either end.
        content: Bytes of a file, or where they lie.
        executable: Whether a file's owner may run it.
        target: Of a symbolic link.
    """

    path: bytes
    content: bytes | Path | None = None
    executable: bool = False
    target: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTar:
    """The archive of one model file, of which only the frame is made: the bytes stay where they are.

    Attributes:
        name: Path in the image without the leading slash: "models/<file>".
        before: What the archive holds before the file's bytes.
        after: What it holds after them.
        blob: The whole, uncompressed; its digest is the layer's diff_id: sha256(before ‖ file ‖ after).
    """

    name: str
    before: bytes
    after: bytes
    blob: Blob

    @property
    def file_bytes(self) -> int:
        """Size of the file itself."""
        return self.blob.size_bytes - len(self.before) - len(self.after)

    def layer(self, digest: Digest) -> Layer:
        """Make the layer once the digest of `blob` is known."""
        return Layer(
            role=Role.MODEL, media_type=media.LAYER_TAR, digest=digest, diff_id=digest, blob=self.blob
        )


def write_tree_tar(tree: Path, prefix: str, out: BinaryIO) -> None:
    """Write the tree as an uncompressed archive; see `tree_layer`."""
    _write(_tree_entries(tree, prefix), out.write)


def tree_layer(tree: Path, *, role: Role, prefix: str, destination: Path) -> Layer:
    """Write a folder as a compressed layer, in one pass.

    Hard links become files of their own, so that the bytes do not depend on how the folder was copied.

    Args:
        tree: The folder; its own mode, owners, times and extended attributes do not matter.
        role: What the layer holds.
        prefix: Where the folder lies in the image, e.g. "opt/edge/deps"; "" is the root.
        destination: The file to write; it appears when it is whole.

    Raises:
        ImageError: The folder holds something that a layer cannot, or changes meanwhile.
        ToolError: A file cannot be read or written.
    """
    entries = _tree_entries(tree, prefix)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    try:
        try:
            with temporary.open("wb") as out:
                digest, diff_id = _write_gzip(entries, out)
            temporary.replace(destination)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise ToolError(
            f"layer {role} cannot be written to {destination}: {error.strerror}",
            hint="make room or choose another place for the store with --cache DIR",
        ) from error
    return _gzip_layer(role, digest, diff_id, Blob.of_file(destination))


def bytes_layer(files: Mapping[str, bytes], *, role: Role) -> Layer:
    """Make a compressed layer of a few small files, in memory.

    Args:
        files: Contents by path in the image, e.g. "/etc/edgebuild/runtime.json".
        role: What the layer holds.

    Raises:
        ImageError: A path is none, or one file lies below another.
    """
    entries = tuple(_Entry(path=_member_path(name), content=data) for name, data in files.items())
    out = io.BytesIO()
    digest, diff_id = _write_gzip(_with_parents(entries), out)
    return _gzip_layer(role, digest, diff_id, Blob.of_bytes(out.getvalue()))


def model_tar(content: Path | Blob, name: str) -> ModelTar:
    """Frame a model file as the only file of an uncompressed archive.

    A file of 8 GiB or more has its size in a PAX record, which GNU tar, Python and Go's archive/tar read.

    Args:
        content: A regular file, whose mode and time do not matter, or what the model file is made of.
        name: Its name in the image, below `models/`.

    Raises:
        ImageError: The name is none.
        ToolError: The file cannot be read.
    """
    if not name or "/" in name:
        raise ImageError(f"{name!r} is not a file name", hint="a model file lies directly below /models")
    path = _member_path(f"{MODEL_DIRECTORY}/{name}")
    content = _regular_file(content) if isinstance(content, Path) else content
    directory = _header(_Entry(path=MODEL_DIRECTORY.encode()), 0)
    header, padding = file_frame(path.decode(), content.size_bytes)
    before, after = directory + header, padding + ARCHIVE_END
    size_bytes = len(before) + content.size_bytes + len(after)
    return ModelTar(
        name=path.decode(),
        before=before,
        after=after,
        blob=Blob((before, *content.parts, after), size_bytes),
    )


def _regular_file(file: Path) -> Blob:
    try:
        status = file.stat()
    except OSError as error:
        raise ToolError(f"{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ToolError(f"{file} is not a regular file", hint="name the model file itself")
    return Blob((file,), status.st_size)


def file_frame(name: str, size_bytes: int) -> tuple[bytes, bytes]:
    """Return what an archive holds before and after a file's bytes; `ARCHIVE_END` ends the archive."""
    return _header(_Entry(path=_member_path(name), content=b""), size_bytes), _padding(size_bytes)


def _gzip_layer(role: Role, digest: Digest, diff_id: Digest, blob: Blob) -> Layer:
    return Layer(role=role, media_type=media.LAYER_GZIP, digest=digest, diff_id=diff_id, blob=blob)


def _write_gzip(entries: Iterable[_Entry], out: BinaryIO) -> tuple[Digest, Digest]:
    """Write entries compressed and return digest and diff_id."""
    # Raw deflate in a frame of our own: the header of Python's gzip module differs between its versions.
    deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    outer, inner = hashlib.sha256(), hashlib.sha256()
    checksum = length = 0

    def give(data: bytes) -> None:
        outer.update(data)
        out.write(data)

    def take(data: bytes) -> None:
        nonlocal checksum, length
        inner.update(data)
        checksum = zlib.crc32(data, checksum)
        length += len(data)
        if compressed := deflate.compress(data):
            give(compressed)

    give(_GZIP_HEADER)
    _write(entries, take)
    give(deflate.flush() + checksum.to_bytes(4, "little") + (length % 2**32).to_bytes(4, "little"))
    return Digest(outer.hexdigest()), Digest(inner.hexdigest())


def _write(entries: Iterable[_Entry], take: Callable[[bytes], object]) -> None:
    for entry in entries:
        if isinstance(entry.content, Path):
            _write_file(entry, entry.content, take)
            continue
        data = entry.content or b""
        take(_header(entry, len(data)) + data + _padding(len(data)))
    take(ARCHIVE_END)


def _write_file(entry: _Entry, source: Path, take: Callable[[bytes], object]) -> None:
    with source.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        take(_header(entry, size_bytes))
        given = 0
        while chunk := file.read(CHUNK_BYTES):
            given += len(chunk)
            if given > size_bytes:
                break
            take(chunk)
    if given != size_bytes:
        raise ImageError(f"{source} changed while it was read", hint="let nothing write there and try again")
    take(_padding(size_bytes))


def _tree_entries(tree: Path, prefix: str) -> tuple[_Entry, ...]:
    base = _member_path(prefix) if prefix.strip("/") else b""
    try:
        found = tuple(_walk(tree, base))
    except OSError as error:
        raise ToolError(f"{error.filename} cannot be read: {error.strerror}") from error
    top = (_Entry(path=base),) if base else ()
    return _with_parents((*top, *found))


def _walk(folder: Path, base: bytes) -> Iterator[_Entry]:
    with os.scandir(folder) as found:
        children = tuple(found)
    for child in children:
        name = _utf8(child.name, Path(child.path))
        if name.startswith(b".wh."):
            raise ImageError(
                f"{child.path} would delete files of lower layers",
                hint="rename it: image-spec v1.1 layer.md gives names that begin with .wh. this meaning",
            )
        path = base + b"/" + name if base else name
        status = child.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield _Entry(path=path)
            yield from _walk(Path(child.path), path)
        elif stat.S_ISREG(status.st_mode):
            executable = bool(status.st_mode & stat.S_IXUSR)
            yield _Entry(path=path, content=Path(child.path), executable=executable)
        elif stat.S_ISLNK(status.st_mode):
            target = os.readlink(child.path)  # noqa: PTH115 - Path would rewrite "./x" and "a//b"
            yield _Entry(path=path, target=_utf8(target, Path(child.path)))
        else:
            raise ImageError(
                f"{child.path} is a device, pipe or socket",
                hint="a layer holds files, directories and symbolic links only",
            )


def _with_parents(entries: Iterable[_Entry]) -> tuple[_Entry, ...]:
    """Add the directories above the entries, and sort."""
    by_path = {entry.path: entry for entry in entries}
    for path in tuple(by_path):
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            parent = b"/".join(parts[:depth])
            above = by_path.setdefault(parent, _Entry(path=parent))
            if above.content is not None or above.target is not None:
                raise ImageError(f"/{path.decode()} lies below /{parent.decode()}, which is no directory")
    return tuple(by_path[path] for path in sorted(by_path))


def _member_path(name: str) -> bytes:
    path = name.strip("/")
    if not path or any(part in {"", ".", ".."} for part in path.split("/")) or "\0" in path:
        raise ImageError(
            f"{name!r} is not a path in an image", hint="write it from the root, without '.' and '..'"
        )
    return _utf8(path, Path(path))


def _utf8(name: str, where: Path) -> bytes:
    """Encode a name; one that the file system gave is the same bytes in every locale."""
    raw = name.encode(errors="surrogateescape")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise ImageError(
            f"the name or target of {os.fsencode(where)!r} is not UTF-8",
            hint="rename it: PAX archives hold UTF-8 only",
        ) from error
    return raw


def _header(entry: _Entry, size_bytes: int) -> bytes:
    """Write the ustar header of an entry, after a PAX header for what it cannot hold.

    Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block". The field `prefix` is left empty:
    a longer name is a record.
    """
    records = {}
    if len(entry.path) > _FIELD_BYTES or not entry.path.isascii():
        records["path"] = entry.path
    target = entry.target or b""
    if len(target) > _FIELD_BYTES or not target.isascii():
        records["linkpath"] = target
    if size_bytes >= _OCTAL_SIZE_LIMIT:
        records["size"] = str(size_bytes).encode()
    kind, mode = b"5", _MODES.get(entry.path, 0o755)
    if entry.target is not None:
        kind, mode = b"2", 0o777
    elif entry.content is not None:
        kind, mode = b"0", 0o755 if entry.executable else 0o644
    # A directory's name ends with a slash, as all tars write it.
    slash = b"/" if kind == b"5" and len(entry.path) < _FIELD_BYTES else b""
    block = _ustar(
        name=_ascii(entry.path) + slash,
        mode=mode,
        kind=kind,
        size_bytes=0 if "size" in records else size_bytes,
        target=_ascii(target),
    )
    return _pax(records) + block if records else block


def _ascii(name: bytes) -> bytes:
    """Shorten a name for a reader that does not know PAX."""
    return bytes(byte if byte < 0x80 else 0x5F for byte in name)[:_FIELD_BYTES]


def _pax(records: Mapping[str, bytes]) -> bytes:
    data = b"".join(_record(key, value) for key, value in sorted(records.items()))
    header = _ustar(name=b"././@PaxHeader", mode=0o644, kind=b"x", size_bytes=len(data), target=b"")
    return header + data + _padding(len(data))


def _record(key: str, value: bytes) -> bytes:
    r"""Write "<length> <key>=<value>\n", whose length counts its own digits."""
    rest = b" " + key.encode() + b"=" + value + b"\n"
    length = len(rest)
    while len(rest) + len(str(length)) != length:
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _ustar(*, name: bytes, mode: int, kind: bytes, size_bytes: int, target: bytes) -> bytes:
    def octal(value: int, width: int) -> bytes:
        return b"%0*o\0" % (width - 1, value)

    fields = (
        name.ljust(100, b"\0"),
        octal(mode, 8),
        octal(0, 8),  # uid
        octal(0, 8),  # gid
        octal(size_bytes, 12),
        octal(LAYER_EPOCH_S, 12),
        b" " * 8,  # the checksum counts itself as spaces
        kind,
        target.ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),  # user and group name
        octal(0, 8),  # device numbers
        octal(0, 8),
        bytes(155 + 12),  # prefix and the rest of the block
    )
    block = b"".join(fields)
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % _BLOCK_BYTES)

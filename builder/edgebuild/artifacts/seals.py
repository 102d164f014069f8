"""Seals of the store: what every file of an entry was when it was written, to notice later damage without reading all.

A seal trusts size, inode and both times of a file. When one of them differs, the bytes decide: a store that was copied
to another disk is as good as before, one whose files were altered is not.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from edgebuild.canonical import canonical_json
from edgebuild.errors import StoreError
from edgebuild.oci.blob import CHUNK_BYTES
from edgebuild.oci.digest import Digest

_FORMAT = 1


class Stamp(NamedTuple):
    """What the file system says of a file; any change of its bytes changes it. Written as these four numbers.

    Attributes:
        inode: Number of the file.
        size_bytes: Its length.
        mtime_ns: Last change of its bytes, in nanoseconds since 1970.
        ctime_ns: Last change of its bytes or properties; cannot be set by programs.
    """

    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Read it; a symbolic link is not followed."""
        return cls.of_status(path.lstat())

    @classmethod
    def of_status(cls, status: os.stat_result) -> "Stamp":
        """Take it from what the file system said."""
        return cls(
            inode=status.st_ino,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )


class SealedPath(NamedTuple):
    """One path of an entry. Written as these four values.

    Attributes:
        kind: "file", "folder" or "link".
        executable: Whether a file's owner may run it.
        content: sha256 of a file, target of a link, "" of a folder.
        stamp: How the file system described it; of folders and links nothing is trusted, so None.
    """

    kind: str
    executable: bool
    content: str
    stamp: Stamp | None


@dataclass(frozen=True, slots=True)
class Seal:
    """All paths of an entry, by name relative to it.

    Attributes:
        entry: Kind and key of the entry, e.g. "layer/0f3c…": a seal that is found beside another one is none.
        paths: What is below it.
    """

    entry: str
    paths: dict[str, SealedPath]

    @property
    def size_bytes(self) -> int:
        """Sum of the files' lengths."""
        return sum(path.stamp.size_bytes for path in self.paths.values() if path.stamp)

    def to_json(self) -> bytes:
        """Write it down."""
        return canonical_json({"format": _FORMAT, "entry": self.entry, "paths": self.paths})

    @classmethod
    def parse(cls, raw: bytes, folder: Path) -> "Seal | None":
        """Read the seal of an entry's folder; None when it is not a seal of this format, or that of another entry."""
        try:
            document = json.loads(raw)
            entry = document["entry"]
            if document["format"] != _FORMAT or entry != _entry_name(folder):
                return None
            return cls(entry, {name: _sealed_path(*fields) for name, fields in document["paths"].items()})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


def make_seal(folder: Path, *, hashed: Mapping[str, Digest] = MappingProxyType({})) -> Seal:
    """Describe every path below `folder`, hashing all files but those that were hashed as they were written.

    Args:
        folder: The entry's folder.
        hashed: sha256 of such files, by name relative to the folder.

    Raises:
        OSError: Something cannot be read.
        StoreError: There is a device, pipe or socket.
    """
    return Seal(
        _entry_name(folder), {name: _describe(folder / name, hashed.get(name)) for name in _names(folder)}
    )


def _entry_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def is_untouched(folder: Path, seal: Seal) -> bool:
    """Compare names, kinds, modes, link targets and stamps; no file is read."""
    try:
        found = 0
        for name, status in _walk(os.fspath(folder)):
            sealed = seal.paths.get(name)
            if sealed is None or not _looks_like(folder, name, status, sealed):
                return False
            found += 1
        return found == len(seal.paths)
    except OSError:
        return False


def find_damage(folder: Path, seal: Seal) -> str:
    """Read everything and name the first path that is not as it was sealed; "" when all are."""
    try:
        names = set(_names(folder))
        for name, path in seal.paths.items():
            if name not in names:
                return f"{name} is missing"
            found = _describe(folder / name)
            if (found.kind, found.executable, found.content) != (path.kind, path.executable, path.content):
                return f"{name} has changed"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    except StoreError as error:
        return error.message
    extra = sorted(names - set(seal.paths))
    return f"{extra[0]} does not belong there" if extra else ""


def hash_file(path: Path) -> Digest:
    """Hash a file's bytes.

    Raises:
        OSError: It cannot be read.
    """
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return Digest(state.hexdigest())


def _sealed_path(kind: str, executable: bool, content: str, stamp: list[int] | None) -> SealedPath:  # noqa: FBT001
    return SealedPath(kind, executable, content, None if stamp is None else Stamp(*stamp))


def _names(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        relative = Path(parent).relative_to(folder)
        for name in sorted(folders + files):
            yield str(relative / name)


def _raise(error: OSError) -> None:
    raise error


def _describe(path: Path, known: Digest | None = None) -> SealedPath:
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return SealedPath(kind="folder", executable=False, content="", stamp=None)
    if stat.S_ISLNK(status.st_mode):
        return SealedPath(kind="link", executable=False, content=str(path.readlink()), stamp=None)
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is neither file, folder nor link", hint="this is a bug of a recipe")
    return SealedPath(
        kind="file",
        executable=bool(status.st_mode & 0o100),
        content=(known or hash_file(path)).hex,
        stamp=Stamp.of(path),
    )


def _walk(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every path below `folder` and its status, as fast as Python can: every build looks at thousands."""
    folders = [(folder, "")]
    while folders:
        path, above = folders.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                name = above + entry.name
                yield name, entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, f"{name}/"))


def _looks_like(folder: Path, name: str, status: os.stat_result, sealed: SealedPath) -> bool:
    if sealed.kind == "folder":
        return stat.S_ISDIR(status.st_mode)
    if sealed.kind == "link":
        return stat.S_ISLNK(status.st_mode) and str((folder / name).readlink()) == sealed.content
    return (
        stat.S_ISREG(status.st_mode)
        and bool(status.st_mode & 0o100) == sealed.executable
        and Stamp.of_status(status) == sealed.stamp
    )

"""Files and folders of the store: written whole or not at all, removed whatever their modes are."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgebuild.errors import StoreError


def store_fault(root: Path, error: OSError) -> StoreError:
    """Say in one line what the file system refused."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreError(
            f"no space is left for the store {root}",
            hint="run `edgebuild cache prune`, or choose another place with --cache DIR",
        )
    place = error.filename or root
    return StoreError(
        f"the store {root} cannot be used: {place}: {error.strerror or error}",
        hint="check its owner and permissions, or choose another place with --cache DIR",
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file, whole or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def size_so_far(path: Path) -> int:
    """Return the bytes of a file that is being fetched; 0 where nothing has come."""
    with suppress(OSError):
        return path.stat().st_size
    return 0


def foreign_stamp(path: Path) -> list[int]:
    """Name what changes when a file is written or replaced: device, inode, size, times in nanoseconds."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def is_older(path: Path, limit_ns: int | None) -> bool:
    """Tell whether a path was last written before the limit; None takes every path for older."""
    return limit_ns is None or path.lstat().st_mtime_ns < limit_ns


def discard(folder: Path) -> None:
    """Remove a temporary folder as far as it goes: children of a killed build may write there for a moment yet."""
    with suppress(OSError):
        remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder whatever its modes are; one that is not there is fine."""

    def unlock(function: Callable[[str], object], name: str, _error: object) -> None:
        with suppress(FileNotFoundError):
            Path(name).parent.chmod(0o755)
            Path(name).chmod(0o755)
            function(name)

    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder, onerror=unlock)

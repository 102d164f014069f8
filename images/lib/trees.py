"""Makes trees deterministic: modes that depend on nothing, and archives unpacked without surprises."""

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from arguments import RecipeError

_PIECE_BYTES = 1 << 20


def settle_modes(root: Path) -> None:
    """Give every entry below `root` one of four modes: folders and programs 755, files 644, links as they are."""
    root.chmod(0o755)
    for folder, names, files in os.walk(root):
        for name in names + files:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                continue
            path.chmod(0o755 if stat.S_ISDIR(mode) or mode & 0o100 else 0o644)


def unpack_wheel(wheel: Path, destination: Path, *, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Unpack a wheel's files, with the modes that it records.

    Raises:
        RecipeError: A name leaves the folder.
    """
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or not wanted(entry.filename):
                continue
            target = safe_path(destination, entry.filename)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source:
                write_file(target, source)
            if entry.external_attr >> 16 & 0o111:
                target.chmod(0o755)


def unpack_sdist(sdist: Path, destination: Path, *, wanted: Callable[[str], bool]) -> None:
    """Unpack those regular files of a source archive whose names, below its one top folder, are wanted.

    Raises:
        RecipeError: A name leaves the folder.
    """
    with tarfile.open(sdist) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            source = archive.extractfile(member) if member.isfile() and wanted(name) else None
            if source is None:
                continue
            target = safe_path(destination, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(target, source)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)


def write_file(target: Path, source: IO[bytes]) -> None:
    """Write a file out of an archive piece by piece: a compiler alone has hundreds of megabytes."""
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, _PIECE_BYTES)


def safe_path(root: Path, name: str) -> Path:
    """Join a name from an archive to a folder.

    Raises:
        RecipeError: It is absolute or climbs out.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise RecipeError(f"an archive holds the name {name!r}, which leaves its folder")
    return root / path

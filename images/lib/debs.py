"""Unpacks Debian packages without dpkg, root or maintainer scripts.

Source: deb(5): an `ar` archive of debian-binary, control.tar.* and data.tar.*; ar(5), common format.
"""

import io
import lzma
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from arguments import RecipeError
from trees import safe_path, write_file

_AR_MAGIC = b"!<arch>\n"
_MOST_LINKS = 8


def unpack_deb(deb: Path, root: Path, *, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Unpack a package's files below `root`.

    Folders that exist stay; where the target has a symbolic link to a folder (/bin and /lib of a merged /usr), files
    go where it points. Hard links become copies of the file's name, device files are refused.

    Args:
        deb: The package.
        root: Absolute folder.
        wanted: Says of a path without leading slash whether it is unpacked.

    Raises:
        RecipeError: The package is broken or holds what an image cannot have.
    """
    try:
        with _opened(deb, "data.tar") as archive:
            for member in archive:
                name = member.name.strip("/").removeprefix("./")
                if name not in {"", "."} and (member.isdir() or wanted(name)):
                    _place(archive, member, name, root, deb.name)
    except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
        raise RecipeError(f"{deb.name} cannot be unpacked: {error}") from error


def control_text(deb: Path) -> str:
    """Read a package's control file."""
    with _opened(deb, "control.tar") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name == "./control" else None
            if file is not None:
                return file.read().decode()
    raise RecipeError(f"{deb.name} has no control file")


def keep_status(deb: Path, root: Path) -> None:
    """Leave the package's control file where scanners look when there is no dpkg (the convention of distroless)."""
    text = control_text(deb)
    name = next(line.split()[1] for line in text.splitlines() if line.startswith("Package: "))
    folder = root / "var/lib/dpkg/status.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


@contextmanager
def _opened(deb: Path, prefix: str) -> Iterator[tarfile.TarFile]:
    """Open the archive inside a package whose name starts with `prefix`, to be read from front to back."""
    with deb.open("rb") as file:
        name, size = _find_member(deb, file, f"{prefix}.")
        if not name.endswith((".xz", ".gz", ".bz2")):
            raise RecipeError(f"{deb.name} is compressed as {name}, which Python 3.11 cannot read")
        with tarfile.open(fileobj=_Part(file, size), mode="r|*") as archive:
            yield archive


class _Part(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, count: int = -1, /) -> bytes:
        data = self._file.read(self._left if count < 0 else min(count, self._left))
        self._left -= len(data)
        return data


def _find_member(deb: Path, file: IO[bytes], prefix: str) -> tuple[str, int]:
    """Go to where a member of an `ar` archive begins, and return its name and length in bytes."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise RecipeError(f"{deb.name} is no Debian package: it is not an ar archive")
    while len(header := file.read(60)) == 60:
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        if name.startswith(prefix):
            return name, size
        file.seek(size + size % 2, os.SEEK_CUR)
    raise RecipeError(f"{deb.name} is no Debian package: it has no {prefix[:-1]}")


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, root: Path, deb: str) -> None:
    target = _through_links(root, name)
    if member.isdir():
        if not target.is_dir():
            target.mkdir(parents=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.exists():
        raise RecipeError(f"{deb} brings /{name}, which another package brought already")
    if member.issym():
        target.symlink_to(_relative_link(target, member.linkname, root))
    elif member.islnk():
        source = _through_links(root, member.linkname.removeprefix("./").strip("/"))
        if not source.is_file():
            raise RecipeError(f"{deb} links /{name} to a file that is not unpacked")
        shutil.copyfile(source, target)
        target.chmod(source.stat().st_mode & 0o7777)
    elif member.isfile():
        file = archive.extractfile(member)
        assert file is not None
        write_file(target, file)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
    else:
        raise RecipeError(f"{deb} holds /{name}, which is neither file, folder nor link")


def _through_links(root: Path, name: str) -> Path:
    """Follow links among the parents only, always inside `root` (usrmerge: /lib is a link to usr/lib).

    Raises:
        RecipeError: A link leads out of it.
    """
    path = root
    parts = safe_path(Path(), name).parts
    for part in parts[:-1]:
        path /= part
        for _ in range(_MOST_LINKS):
            if not path.is_symlink():
                break
            path = safe_path(root, os.path.normpath(path.parent.relative_to(root) / path.readlink()))
        else:
            raise RecipeError(f"the links above /{name} go in a circle")
    return path / parts[-1]


def _relative_link(target: Path, text: str, root: Path) -> str:
    """Make an absolute link relative, so that it means the same file in the tree and in the image."""
    if not text.startswith("/"):
        return text
    return os.path.relpath(root / text.lstrip("/"), target.parent)

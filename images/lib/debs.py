"""Unpacks Debian packages without dpkg, root or maintainer scripts.

Source: deb(5): an `ar` archive of debian-binary, control.tar.* and data.tar.*; ar(5), common format.
"""

import io
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from arguments import RecipeError
from trees import safe_path

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
        with tarfile.open(fileobj=io.BytesIO(_member(deb, "data.tar")), mode="r:*") as archive:
            for member in archive:
                name = member.name.strip("/").removeprefix("./")
                if name not in {"", "."} and (member.isdir() or wanted(name)):
                    _place(archive, member, name, root, deb.name)
    except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
        raise RecipeError(f"{deb.name} cannot be unpacked: {error}") from error


def control_text(deb: Path) -> str:
    """Read a package's control file."""
    with tarfile.open(fileobj=io.BytesIO(_member(deb, "control.tar")), mode="r:*") as archive:
        file = archive.extractfile("./control")
        if file is None:
            raise RecipeError(f"{deb.name} has no control file")
        return file.read().decode()


def _member(deb: Path, prefix: str) -> bytes:
    for name, data in _ar_members(deb):
        if name.startswith(prefix + "."):
            if not name.endswith((".xz", ".gz", ".bz2")):
                raise RecipeError(f"{deb.name} is compressed as {name}, which Python 3.11 cannot read")
            return data
    raise RecipeError(f"{deb.name} is no Debian package: it has no {prefix}")


def _ar_members(deb: Path) -> Iterator[tuple[str, bytes]]:
    data = deb.read_bytes()
    if not data.startswith(_AR_MAGIC):
        raise RecipeError(f"{deb.name} is no Debian package: it is not an ar archive")
    position = len(_AR_MAGIC)
    while position + 60 <= len(data):
        header = data[position : position + 60]
        size = int(header[48:58])
        yield header[:16].decode().strip().rstrip("/"), data[position + 60 : position + 60 + size]
        position += 60 + size + size % 2


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
        target.write_bytes(source.read_bytes())
        target.chmod(source.stat().st_mode & 0o7777)
    elif member.isfile():
        file = archive.extractfile(member)
        assert file is not None
        target.write_bytes(file.read())
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

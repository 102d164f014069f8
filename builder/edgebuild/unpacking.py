"""An image as a folder: its layers laid over each other, and how a program of it is started."""

import errno
import json
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from edgebuild.errors import ImageError, ToolError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import CHUNK_BYTES, Blob
from edgebuild.oci.layer import Layer


def unpack(layers: tuple[Layer, ...], root: Path) -> None:
    """Lay the layers over each other in a folder, as a container engine does, with this user as owner.

    Raises:
        ImageError: A layer is damaged or reaches outside the folder.
        ToolError: The disk is full.
    """
    for layer in layers:
        try:
            with (
                _Uncompressed(layer) as stream,
                tarfile.open(fileobj=stream, mode="r|", errorlevel=1) as archive,
            ):
                _extract(archive, root)
        except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
            raise ImageError(
                f"layer {layer.digest.short} ({layer.role}) cannot be unpacked: {error}",
                hint="build the image again",
            ) from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise ToolError(
                    f"no space is left in {root.parent} to unpack layer {layer.digest.short}",
                    hint="run `edgebuild cache prune`, choose another place with --cache DIR, or use --no-test",
                ) from error
            raise ToolError(f"layer {layer.digest.short} cannot be unpacked: {error.strerror}") from error


def _extract(archive: tarfile.TarFile, root: Path) -> None:
    """Write directories, files and symbolic links; nothing may land outside the folder, whatever its name says."""
    inside = root.resolve()
    for member in archive:
        path = root / member.name.lstrip("/")
        parent = path.parent.resolve()
        if ".." in path.parts or not parent.is_relative_to(inside):
            raise ValueError(f"{member.name!r} reaches outside the image")
        path = parent / path.name
        if member.isdir():
            path.mkdir(mode=0o755, exist_ok=True)
            path.chmod((member.mode & 0o777) | 0o700)
            continue
        path.unlink(missing_ok=True)
        if member.issym():
            path.symlink_to(member.linkname)
        elif member.isreg():
            source = archive.extractfile(member)
            assert source is not None
            with path.open("xb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
            path.chmod((member.mode & 0o777) | 0o400)
        else:
            raise ValueError(f"{member.name!r} is neither a directory, a file nor a symbolic link")


class _Uncompressed:
    """The tar of a layer as a readable stream, decompressed on the way."""

    def __init__(self, layer: Layer) -> None:
        self._chunks = _inflate(layer.blob) if layer.media_type == media.LAYER_GZIP else layer.blob.chunks()
        self._rest = b""

    def __enter__(self) -> "IO[bytes]":
        return self  # type: ignore[return-value] # tarfile only reads

    def __exit__(self, *_exception: object) -> None:
        self._chunks = iter(())

    def read(self, size: int) -> bytes:
        pieces, length = [self._rest], len(self._rest)
        while length < size and (chunk := next(self._chunks, b"")):
            pieces.append(chunk)
            length += len(chunk)
        data = b"".join(pieces)
        self._rest = data[size:]
        return data[:size]


def _inflate(blob: Blob) -> Iterator[bytes]:
    inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
    for chunk in blob.chunks():
        yield inflate.decompress(chunk)
    yield inflate.flush()
    if not inflate.eof:
        raise EOFError("the compressed layer ends early")


def run_section(config: bytes) -> Mapping[str, Any]:
    """Read how a container of an image starts: the section `config` of its config, which has an `Entrypoint`.

    Raises:
        ImageError: It says nothing of the kind.
    """
    section = json.loads(config).get("config", {})
    if not section.get("Entrypoint"):
        raise ImageError("the image has no entrypoint", hint="build it with edgebuild")
    return section  # type: ignore[no-any-return]

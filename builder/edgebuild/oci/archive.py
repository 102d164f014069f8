"""Images as docker-archive: the one form that `docker load` of Docker 20.10 takes, for USB sticks and object stores.

It holds one image and its names, and no signatures: a daemon's store has no place for them.

Source: moby v20.10 image/tarexport/load.go: manifest.json lists config and layers by file name; layers may be gzip.
"""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from edgebuild.canonical import canonical_json
from edgebuild.errors import ImageError, ToolError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.digest import Digest
from edgebuild.oci.image import Image
from edgebuild.oci.layer import Layer
from edgebuild.oci.tar import ARCHIVE_END, file_frame
from edgebuild.progress import Progress


def write_docker_archive(image: Image, out: BinaryIO, *, names: tuple[str, ...], progress: Progress) -> None:
    """Write an image as a docker-archive, in one pass and with bounded memory.

    Args:
        image: The image.
        out: A file or the standard input of `docker load`.
        names: "repository:tag" under which it is loaded; empty loads it without a name.
        progress: Told of the bytes written.

    Raises:
        ImageError: A layer's bytes are not those of its digest.
        ToolError: A layer cannot be read.
        OSError: `out` cannot be written.
    """
    files = _files(image)
    manifest = [
        {
            "Config": _config_name(image),
            "RepoTags": list(names),
            "Layers": [_layer_name(layer) for layer in image.layers],
        }
    ]
    title = f"write docker archive of {image.profile or image.digest.short}"
    total_bytes = sum(blob.size_bytes for blob, _ in files.values())
    with progress.task(title, total_bytes=total_bytes) as task:
        listing = canonical_json(manifest)
        header, padding = file_frame("manifest.json", len(listing))
        out.write(header + listing + padding)
        for name, (blob, digest) in files.items():
            header, padding = file_frame(name, blob.size_bytes)
            out.write(header)
            for chunk in _checked(blob, digest):
                out.write(chunk)
                task.advance(len(chunk))
            out.write(padding)
        out.write(ARCHIVE_END)


def _files(image: Image) -> dict[str, tuple[Blob, Digest]]:
    """List config and layers by name; a layer that comes twice is written once."""
    config = {_config_name(image): (Blob.of_bytes(image.config), image.config_digest)}
    return config | {_layer_name(layer): (layer.blob, layer.digest) for layer in image.layers}


def _config_name(image: Image) -> str:
    return f"{image.config_digest.hex}.json"


def _layer_name(layer: Layer) -> str:
    return f"{layer.digest.hex}.tar" if layer.media_type == media.LAYER_TAR else f"{layer.digest.hex}.tar.gz"


def _checked(blob: Blob, digest: Digest) -> Iterator[bytes]:
    """Yield the bytes of a blob and fail at their end when they are not those of the digest."""
    state = hashlib.sha256()
    chunks = blob.chunks()
    while True:
        try:
            chunk = next(chunks, b"")
        except OSError as error:
            raise ToolError(f"blob {digest} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ImageError(f"blob {digest}: {error}", hint="build the image again") from error
        if not chunk:
            break
        state.update(chunk)
        yield chunk
    if state.hexdigest() != digest.hex:
        raise ImageError(f"the bytes of {digest} are others than its name says", hint="build the image again")

"""Models in several GGUF files, written as `cut_gguf` cuts them."""

from collections.abc import Sequence
from pathlib import Path

from edgebuild.gguf_shards import shard_names
from edgebuild.oci.blob import Blob


def write_shards(blobs: Sequence[Blob], folder: Path, stem: str = "m") -> tuple[Path, ...]:
    """Write the files of a model, each as large as it said.

    Args:
        blobs: The files.
        folder: Where they go; made where it is not there.
        stem: What all names begin with.
    """
    folder.mkdir(exist_ok=True)
    paths = []
    for name, blob in zip(shard_names(stem, len(blobs)), blobs, strict=True):
        paths.append(folder / str(name))
        paths[-1].write_bytes(blob.read())
        assert paths[-1].stat().st_size == blob.size_bytes
    return tuple(paths)

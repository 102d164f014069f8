"""Models that come in several GGUF files: their names and headers are read as those of one model. Pure but for reading headers.

What llama.cpp would refuse is refused here, before gigabytes are copied; what it does not notice, such as shards of two
models, as far as headers tell it.

Source: llama.cpp src/llama-model-loader.cpp, `llama_model_loader::llama_model_loader`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from edgebuild.errors import ModelError
from edgebuild.gguf import SPLIT_KEYS, GgufHeader, Tensor, read_gguf_header
from edgebuild.gguf_shards import MAX_SHARDS, SPLIT_KEYS_BYTES, ShardName

# Of all files together; one file's header has the same bound.
_MAX_TENSORS = 1 << 17
_BLOCK = re.compile(r"blk\.([0-9]+)\.")
_AGAIN = "fetch all files of the model again, from one place"


def is_one_of_several(file: str) -> bool:
    """Tell whether a file is named as one of several."""
    name = ShardName.parse(file)
    return name is not None and name.count > 1


def find_shards(files: Iterable[str], file: str, *, place: str) -> tuple[str, ...]:
    """List the files of the model that `file` belongs to, in order; of most models it is the only one.

    Args:
        files: What there is, `file` among it.
        file: A GGUF file; of a model in several, the first.
        place: What is looked into, for messages.

    Raises:
        ModelError: Files are missing, are too many, or `file` is not the first.
    """
    name = ShardName.parse(file)
    if name is None or name.count < 2:
        return (file,)
    if name.count > MAX_SHARDS:
        raise ModelError(
            f"{file} in {place} is a model in {name.count} files; an image takes no more than {MAX_SHARDS}",
            hint="join them with llama.cpp's gguf-split --merge",
        )
    found: dict[int, str] = {}
    for other in sorted(files):
        shard = ShardName.parse(other)
        if shard is not None and (shard.stem, shard.count) == (name.stem, name.count):
            found.setdefault(shard.number, other)
    wanted = {number + 1: str(each) for number, each in enumerate(name.all())}
    missing = [each for number, each in wanted.items() if number not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{place} lacks {missing[0]}{more} of a model in {name.count} files", hint="give all of its files"
        )
    if name.number != 1:
        raise ModelError(
            f"{file} in {place} is file {name.number} of a model in {name.count} files",
            hint=f"name the first one: {found[1]}",
        )
    return tuple(found[number] for number in wanted)


def read_joined_header(paths: Sequence[Path]) -> GgufHeader:
    """Read the headers of a model's files, in order, as one: metadata of the first, tensors of all.

    Raises:
        ModelError: One cannot be read or is damaged; or they do not belong together.
    """
    first = read_gguf_header(paths[0])
    if len(paths) == 1:
        return first
    _check_place(paths, 0, first)
    tensors: dict[str, tuple[Tensor, Path]] = {}
    file_bytes = 0
    for number, path in enumerate(paths):
        header = read_gguf_header(path) if number else first
        if number:
            _check_place(paths, number, header)
        _check_kinship(path, header, first)
        for tensor in header.tensors:
            _, other = tensors.setdefault(tensor.name, (tensor, path))
            if other is not path:
                raise ModelError(
                    f"{path}: tensor {tensor.name[:80]!r} is in {other.name} already", hint=_AGAIN
                )
        if len(tensors) > _MAX_TENSORS:
            raise ModelError(f"{path}: more than {_MAX_TENSORS} tensors in all files", hint=_AGAIN)
        file_bytes += header.file_bytes
    declared = first.metadata.get("split.tensors.count")
    if declared != len(tensors):
        raise ModelError(
            f"{paths[0]}: the model has {declared} tensors, its {len(paths)} files hold {len(tensors)}",
            hint=_AGAIN,
        )
    metadata = {key: value for key, value in first.metadata.items() if key not in SPLIT_KEYS}
    others = sum(_entry_bytes(tensor) for tensor, path in tensors.values() if path is not paths[0])
    return replace(
        first,
        header_bytes=first.header_bytes - SPLIT_KEYS_BYTES + others,
        metadata=MappingProxyType(metadata),
        tensors=tuple(tensor for tensor, _ in tensors.values()),
        file_bytes=file_bytes,
    )


def _entry_bytes(tensor: Tensor) -> int:
    """Size a tensor's entry in the table: name, number of dimensions, dimensions, type, offset."""
    return 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8


def _check_place(paths: Sequence[Path], number: int, header: GgufHeader) -> None:
    """See that a file says of itself what its place among the others says."""
    path = paths[number]
    for key, wanted in (("split.count", len(paths)), ("split.no", number)):
        found = header.metadata.get(key)
        if found != wanted or isinstance(found, bool):
            said = "nothing" if found is None else repr(found)
            raise ModelError(
                f"{path}: {key} is {said[:80]}, not {wanted}: it is not file {number + 1} of {len(paths)} of this model",
                hint=_AGAIN,
            )


def _check_kinship(path: Path, header: GgufHeader, first: GgufHeader) -> None:
    """See that a file is of the same model, as far as its header tells."""
    for what in _strangeness(header, first):
        raise ModelError(f"{path}: is a file of another model: {what}", hint=_AGAIN)


def _strangeness(header: GgufHeader, first: GgufHeader) -> Iterator[str]:
    for key in ("general.architecture", "general.name", "split.tensors.count"):
        found, wanted = header.metadata.get(key), first.metadata.get(key)
        if found is not None and found != wanted:
            yield f"{key} is {str(found)[:80]!r}, not {str(wanted)[:80]!r}"
    architecture = first.metadata.get("general.architecture")
    blocks = first.metadata.get(f"{architecture}.block_count")
    embedding = first.metadata.get(f"{architecture}.embedding_length")
    for tensor in header.tensors:
        block = _BLOCK.match(tensor.name)
        if block and isinstance(blocks, int) and len(block[1]) < 10 and int(block[1]) >= blocks:
            yield f"it holds {tensor.name[:80]!r}, the model has {blocks} blocks"
        is_norm = block is not None and tensor.name.endswith(".attn_norm.weight")
        if is_norm and isinstance(embedding, int) and tensor.shape != (embedding,):
            yield f"{tensor.name[:80]!r} has the shape {tensor.shape}, the model's embedding {embedding}"

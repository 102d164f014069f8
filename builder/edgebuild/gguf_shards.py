"""Models in several GGUF files, as llama.cpp's gguf-split cuts them: names, metadata, and cutting without copying.

A shard is a GGUF file of its own: a header made here, which holds a part of the tensor table, then the tensors' bytes as
they lie in the source. All metadata are in the first shard; every shard has `SPLIT_KEYS`. Since a header is small and is
known from the source's header alone, a shard is described as a blob of literal bytes and ranges of the source, which
one pass copies and hashes: nothing is written before it reaches its place.

Source: llama.cpp tools/gguf-split/gguf-split.cpp, `split_strategy`; src/llama.cpp, `llama_split_path`.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebuild.errors import PlanError
from edgebuild.gguf import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    START,
    GgufPlaces,
    TensorPlace,
    aligned,
    read_gguf_places,
)
from edgebuild.oci.blob import Blob, FileRange, Part

# Docker refuses more than 125 layers, and an image has others too.
MAX_SHARDS = 100
DEFAULT_SHARD_BYTES = 1 << 30

VERSION = 3  # docs/gguf.md
_NAME = re.compile(
    r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE | re.DOTALL
)
# docs/gguf.md, gguf_metadata_value_type.
_UINT16, _UINT32, _INT32 = 2, 4, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardName:
    """The name of one file of several.

    Attributes:
        stem: What the files have in common.
        number: From 1.
        count: Number of files.
    """

    stem: str
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.stem}-{self.number:05d}-of-{self.count:05d}.gguf"

    @classmethod
    def parse(cls, file: str) -> "ShardName | None":
        """Read a name, with folders before it or without; None when it is not of that form."""
        found = _NAME.fullmatch(file)
        if found is None:
            return None
        return cls(stem=found["stem"], number=int(found["number"]), count=int(found["count"]))

    def all(self) -> "tuple[ShardName, ...]":
        """Name all files of the model, in order."""
        return shard_names(self.stem, self.count)


def shard_names(stem: str, count: int) -> tuple[ShardName, ...]:
    """Name the files of a model, in order."""
    return tuple(ShardName(stem=stem, number=number, count=count) for number in range(1, count + 1))


def cut_gguf(path: Path, *, shard_bytes: int) -> tuple[Blob, ...]:
    """Describe a GGUF file as shards; the same file and size give the same shards.

    Tensors stay in order and whole. A shard takes tensors until the next one would make them more than `shard_bytes`; one
    that is larger by itself is a shard of its own.

    Args:
        path: The file.
        shard_bytes: Most bytes of tensors in a shard.

    Raises:
        ModelError: The file cannot be read or cut.
        PlanError: There would be more than `MAX_SHARDS`.
    """
    places = read_gguf_places(path)
    groups = tuple(_groups(places, shard_bytes))
    if len(groups) > MAX_SHARDS:
        raise PlanError(
            f"{path.name} would be {len(groups)} shards; an image takes no more than {MAX_SHARDS}",
            hint="give a larger --shard-size, or none",
        )
    return tuple(_shard(path, places, groups, number) for number in range(len(groups)))


def _groups(places: GgufPlaces, shard_bytes: int) -> Iterator[tuple[TensorPlace, ...]]:
    group: list[TensorPlace] = []
    held = 0
    for tensor in places.tensors:
        size_bytes = aligned(tensor.size_bytes, places.alignment)
        if group and held + size_bytes > shard_bytes:
            yield tuple(group)
            group, held = [], 0
        group.append(tensor)
        held += size_bytes
    yield tuple(group)


def _shard(path: Path, places: GgufPlaces, groups: Sequence[tuple[TensorPlace, ...]], number: int) -> Blob:
    tensors = groups[number]
    keys = places.keys if number == 0 else ()
    # A reader takes the alignment from the file at hand.
    own = [] if number == 0 or places.alignment == DEFAULT_ALIGNMENT else [_alignment_key(places.alignment)]
    own += _split_keys(number=number, count=len(groups), tensors=sum(map(len, groups)))
    key_count = len(own) + (places.key_count if number == 0 else 0)
    start = START.pack(MAGIC, VERSION, len(tensors), key_count)
    rest = b"".join((*own, *_table(tensors)))
    length = len(start) + sum(end - begin for begin, end in keys) + len(rest)
    begin, end = tensors[0].begin, tensors[-1].begin + tensors[-1].size_bytes
    parts: tuple[Part, ...] = (
        start,
        *(_range(path, places, *span) for span in keys),
        rest + bytes(aligned(length, places.alignment) - length),
        _range(path, places, begin, end),
        bytes(aligned(end - begin, places.alignment) - (end - begin)),
    )
    size_bytes = aligned(length, places.alignment) + aligned(end - begin, places.alignment)
    return Blob(tuple(part for part in parts if part != b""), size_bytes)


def _range(path: Path, places: GgufPlaces, begin: int, end: int) -> FileRange:
    return FileRange(path=path, offset_bytes=begin, size_bytes=end - begin, stamp=places.stamp)


def _split_keys(*, number: int, count: int, tensors: int) -> list[bytes]:
    """Write what says that a file is one of several: types and order are gguf-split's, and llama.cpp insists on the types."""
    return [
        make_key("split.no", struct.pack("<IH", _UINT16, number)),
        make_key("split.tensors.count", struct.pack("<Ii", _INT32, tensors)),
        make_key("split.count", struct.pack("<IH", _UINT16, count)),
    ]


def _alignment_key(alignment: int) -> bytes:
    return make_key("general.alignment", struct.pack("<II", _UINT32, alignment))


def make_key(name: str, value: bytes) -> bytes:
    """Make an entry of the metadata.

    Args:
        name: Name of the key.
        value: Its type and what it holds, as docs/gguf.md lays them out.
    """
    return make_string(name) + value


def make_string(text: str) -> bytes:
    """Make a string as headers hold it: its length in bytes, then itself in UTF-8."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _table(tensors: tuple[TensorPlace, ...]) -> Iterator[bytes]:
    for tensor in tensors:
        yield tensor.entry + struct.pack("<Q", tensor.begin - tensors[0].begin)


# What the keys take in the header of a shard.
SPLIT_KEYS_BYTES = sum(map(len, _split_keys(number=0, count=0, tensors=0)))

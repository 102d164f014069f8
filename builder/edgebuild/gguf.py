"""Reading the header of a GGUF file: metadata and tensor table, never the weights.

The header may come from anywhere, so nothing in it is believed: every length is checked against the bytes that are
there before anything is allocated, and arrays (vocabularies) are walked over, not kept.

Source: ggml docs/gguf.md (GGUF version 3).
"""

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgebuild.errors import ModelError
from edgebuild.gguf_types import TENSOR_TYPES
from edgebuild.oci.blob import FileStamp

MAGIC = b"GGUF"
# What a file of version 3 has in common with all others: magic, version, number of tensors, number of keys.
START = struct.Struct("<4sIQQ")
DEFAULT_ALIGNMENT = 32  # docs/gguf.md, general.alignment
# What only says how a model is cut into files (llama.cpp src/llama-arch.cpp, LLM_KV_SPLIT_*).
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_MAX_ENTRIES = 1 << 17  # tensors or metadata keys; the largest models have a few thousand
_MAX_KEY_BYTES = 1 << 16  # docs/gguf.md: keys are at most 2^16 - 1 bytes
_MAX_STRING_BYTES = 1 << 20  # what is kept of a string value; longer ones are walked over
_MAX_KEPT_ITEMS = 1 << 12  # numbers kept of an array: per-layer counts, never vocabularies
_MAX_KEPT_BYTES = 1 << 25  # of keys, names and values together; real headers keep well under 2 MiB
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_ALIGNMENT = 1 << 16

# docs/gguf.md, gguf_metadata_value_type.
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9

Value = str | int | float | bool | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One entry of the tensor table.

    Attributes:
        name: Name, e.g. "blk.0.attn_q.weight".
        shape: Elements along each axis, fastest first, as GGUF stores them.
        type: ggml's name of the element type, e.g. "Q4_K".
        size_bytes: Bytes of its data.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What the header of a GGUF file says.

    Attributes:
        metadata: Scalars, strings up to 1 MiB and short arrays of whole numbers, by key.
        array_lengths: Items of every array, by key.
        tensors: The tensor table in file order.
        header_bytes: Bytes before the tensors' data, alignment left out.
        file_bytes: Size of the file.
    """

    metadata: Mapping[str, Value]
    array_lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    header_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies in its file.

    Attributes:
        name: Name, for messages.
        entry: Its entry of the table as it stands there, without the offset that ends it.
        begin: Where its data begins, in bytes from the start of the file.
        size_bytes: Bytes of its data.
    """

    name: str
    entry: bytes
    begin: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufPlaces:
    """Where what a GGUF file is made of lies.

    Attributes:
        stamp: What the file was when it was looked into.
        key_count: Metadata keys, those of `SPLIT_KEYS` left out.
        keys: Begin and end of the bytes that hold them, in bytes from the start of the file.
        alignment: What data are aligned to, in bytes.
        tensors: In file order.
    """

    stamp: FileStamp
    key_count: int
    keys: tuple[tuple[int, int], ...]
    alignment: int
    tensors: tuple[TensorPlace, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        ModelError: The file cannot be read, is no GGUF file, is damaged, or is cut short.
    """
    with _reading(path) as reader:
        return reader.header()


def read_gguf_places(path: Path) -> GgufPlaces:
    """Read and check the header of a GGUF file, and tell where everything lies.

    Raises:
        ModelError: As `read_gguf_header`; or the tensors do not follow one another, which llama.cpp refuses too.
    """
    with _reading(path) as reader:
        reader.header()
        return reader.places()


@contextmanager
def _reading(path: Path) -> Iterator["_Reader"]:
    try:
        with path.open("rb") as file:
            stamp = FileStamp.of(os.fstat(file.fileno()))
            if stamp.size_bytes < START.size:
                raise ModelError(f"{path}: not a GGUF file ({stamp.size_bytes} bytes)", hint=_NOT_GGUF)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield _Reader(data, path, stamp)
    except IsADirectoryError as error:
        raise ModelError(f"{path}: is a folder, not a GGUF file", hint=_NOT_GGUF) from error
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror}", hint="check the path of --model"
        ) from error


def aligned(count: int, alignment: int) -> int:
    """Round up to a multiple."""
    return -(-count // alignment) * alignment


_NOT_GGUF = "give a .gguf file; convert other formats with llama.cpp's convert_hf_to_gguf.py"
_DAMAGED = "the file is damaged or was not downloaded completely; fetch it again"


class _Reader:
    """A cursor over the mapped file that never goes past its end."""

    def __init__(self, data: mmap.mmap, path: Path, stamp: FileStamp) -> None:
        self._data = data
        self._path = path
        self._stamp = stamp
        self._size = len(data)
        self._at = 0
        self._kept_bytes = 0
        # What `places` tells of, once the header was read.
        self._key_count = 0
        self._split_keys: list[tuple[int, int]] = []
        self._keys_end = 0
        self._alignment = DEFAULT_ALIGNMENT
        self._data_begin = 0
        self._table: list[tuple[Tensor, int, int]] = []

    def header(self) -> GgufHeader:
        if self._data[:4] != MAGIC:
            raise ModelError(
                f"{self._path}: not a GGUF file (it begins with {self._data[:4]!r})", hint=_NOT_GGUF
            )
        self._at = 4
        version = self._number("<I")
        if version not in {2, 3}:
            swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
            kind = "big-endian GGUF" if swapped in {2, 3} else f"GGUF version {version}"
            raise ModelError(
                f"{self._path}: {kind} is not supported",
                hint="convert the model again with a current llama.cpp",
            )
        tensor_count, key_count = self._count("tensors"), self._count("metadata keys")
        metadata, lengths = self._metadata(key_count)
        self._key_count, self._keys_end = key_count - len(self._split_keys), self._at
        self._table = [self._tensor_entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or not 1 <= alignment <= _MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self._damaged(f"alignment {alignment!r}")
        self._alignment, self._data_begin = alignment, aligned(self._at, alignment)
        self._check_extent()
        return GgufHeader(
            metadata=MappingProxyType(metadata),
            array_lengths=MappingProxyType(lengths),
            tensors=tuple(tensor for tensor, _, _ in self._table),
            header_bytes=self._at,
            file_bytes=self._size,
        )

    def places(self) -> GgufPlaces:
        """Tell where everything lies, once `header` has read it."""
        found, due = [], 0
        for tensor, entry_begin, entry_end in self._table:
            (offset,) = struct.unpack_from("<Q", self._data, entry_end - 8)
            if offset != due:
                raise ModelError(
                    f"{self._path}: tensor {tensor.name[:80]!r} lies at {offset} of the data, not at {due} behind the one before",
                    hint="convert the model again with a current llama.cpp",
                )
            due = aligned(offset + tensor.size_bytes, self._alignment)
            found.append(
                TensorPlace(
                    name=tensor.name,
                    entry=self._data[entry_begin : entry_end - 8],
                    begin=self._data_begin + offset,
                    size_bytes=tensor.size_bytes,
                )
            )
        edges = [START.size, *(edge for span in self._split_keys for edge in span), self._keys_end]
        spans = zip(edges[::2], edges[1::2], strict=True)
        return GgufPlaces(
            stamp=self._stamp,
            key_count=self._key_count,
            keys=tuple((begin, end) for begin, end in spans if begin < end),
            alignment=self._alignment,
            tensors=tuple(found),
        )

    def _metadata(self, key_count: int) -> tuple[dict[str, Value], dict[str, int]]:
        metadata: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(key_count):
            begin = self._at
            key = self._text(_MAX_KEY_BYTES, "a metadata key")
            if key in metadata or key in lengths:
                raise self._damaged(f"metadata key {key[:80]!r} stands there twice")
            kind = int(self._number("<I"))
            if kind == _ARRAY:
                lengths[key], kept = self._array(key)
                if kept is not None:
                    metadata[key] = kept
            else:
                value = self._value(kind, key)
                if value is not None:
                    metadata[key] = value
            if key in SPLIT_KEYS:
                self._split_keys.append((begin, self._at))
        return metadata, lengths

    def _value(self, kind: int, key: str) -> Value | None:
        if kind == _STRING:
            length = self._length(key)
            if length > _MAX_STRING_BYTES:
                self._at += length
                return None
            return self._slice(length).decode("utf-8", errors="replace")
        if kind not in _SCALARS:
            raise self._damaged(f"metadata key {key[:80]!r} has the unknown type {kind}")
        return self._number(_SCALARS[kind])

    def _array(self, key: str) -> tuple[int, tuple[int, ...] | None]:
        kind, count = int(self._number("<I")), int(self._number("<Q"))
        if kind == _STRING:
            # Eight bytes of length are the least that an item takes.
            if count > (self._size - self._at) // 8:
                raise self._damaged(f"array {key[:80]!r} of {count} strings goes past the end")
            self._skip_strings(count, key)
            return count, None
        if kind not in _SCALARS:
            raise self._damaged(f"array {key[:80]!r} has items of the unknown type {kind}")
        width = struct.calcsize(_SCALARS[kind])
        if count > (self._size - self._at) // width:
            raise self._damaged(f"array {key[:80]!r} of {count} items goes past the end")
        raw_at = self._at
        self._at += count * width
        if count > _MAX_KEPT_ITEMS or kind in {6, 12}:
            return count, None
        self._keep(count * 40)
        items = struct.unpack_from(f"<{count}{_SCALARS[kind][1]}", self._data, raw_at)
        return count, tuple(int(item) for item in items)

    def _skip_strings(self, count: int, key: str) -> None:
        """Walk over strings; the inner loop of reading a large vocabulary, so everything is local."""
        data, size, at, unpack = self._data, self._size, self._at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise self._damaged(f"array {key[:80]!r} goes past the end")
            at += 8 + unpack(data, at)[0]
        if at > size:
            raise self._damaged(f"array {key[:80]!r} goes past the end")
        self._at = at

    def _tensor_entry(self) -> tuple[Tensor, int, int]:
        """Read an entry of the table; return the tensor, and where the entry begins and ends."""
        begin = self._at
        name = self._text(_MAX_KEY_BYTES, "a tensor's name")
        dimensions = int(self._number("<I"))
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(int(self._number("<Q")) for _ in range(dimensions))
        kind, _ = int(self._number("<I")), self._number("<Q")
        if kind not in TENSOR_TYPES:
            raise ModelError(
                f"{self._path}: tensor {name[:80]!r} has the unknown type {kind}",
                hint="quantise it to a type that this release's llama.cpp knows",
            )
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        elements = 1
        for length in shape:
            elements *= length
        if not 0 < elements < 2**63 or shape[0] % block:
            raise self._damaged(f"tensor {name[:80]!r} has the impossible shape {shape} for {type_name}")
        tensor = Tensor(name=name, shape=shape, type=type_name, size_bytes=elements // block * block_bytes)
        return tensor, begin, self._at

    def _check_extent(self) -> None:
        for tensor, _, entry_end in self._table:
            (offset,) = struct.unpack_from("<Q", self._data, entry_end - 8)
            missing = self._data_begin + offset + tensor.size_bytes - self._size
            if missing > 0:
                raise ModelError(
                    f"{self._path}: cut short: tensor {tensor.name[:80]!r} ends {missing} bytes past the end of the file",
                    hint=_DAMAGED,
                )

    def _count(self, what: str) -> int:
        count = int(self._number("<Q"))
        if count > _MAX_ENTRIES:
            raise self._damaged(f"{count} {what}")
        return count

    def _text(self, limit_bytes: int, what: str) -> str:
        length = self._length(what)
        if length > limit_bytes:
            raise self._damaged(f"{what} of {length} bytes")
        return self._slice(length).decode("utf-8", errors="replace")

    def _length(self, what: str) -> int:
        length = int(self._number("<Q"))
        if length > self._size - self._at:
            raise self._damaged(f"{what[:80]!r} of {length} bytes goes past the end")
        return length

    def _keep(self, count_bytes: int) -> None:
        """Account for memory that stays, so that no header, however made, takes more than a bounded amount."""
        self._kept_bytes += count_bytes
        if self._kept_bytes > _MAX_KEPT_BYTES:
            raise self._damaged("the header is larger than any real model's")

    def _slice(self, length: int) -> bytes:
        self._keep(length + 200)
        piece = self._data[self._at : self._at + length]
        self._at += length
        return piece

    def _number(self, form: str) -> int | float | bool:
        width = struct.calcsize(form)
        if self._at + width > self._size:
            raise self._damaged("the header goes past the end")
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += width
        return value  # type: ignore[no-any-return]

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"{self._path}: damaged GGUF header at byte {self._at}: {what}", hint=_DAMAGED)

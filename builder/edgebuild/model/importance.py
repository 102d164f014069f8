"""Importance matrices: read as llama.cpp reads its own, in both of its formats, and made ready for llama_model_quantize.

Source: llama.cpp common/imatrix-loader.cpp and tools/quantize/quantize.cpp, load_imatrix(), as in llama-cpp-python 0.3.36.
"""

import json
import struct
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError
from edgebuild.gguf import MAGIC, read_gguf_header, read_gguf_places
from edgebuild.oci.digest import Digest

_MOST_BYTES = 1 << 30
_SUMS, _COUNTS = ".in_sum2", ".counts"
_HINT = "give a file that llama.cpp's llama-imatrix wrote, or auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceMatrix:
    """How strongly each column of each weight matrix is used.

    Attributes:
        name: Name of the file, or "auto".
        digest: sha256 of the file.
        text: Text that it comes from, as far as it says.
        chunks: Chunks of that text; 0 when unknown.
        entries: Weight matrices and the mean square of what meets each of their columns.
    """

    name: str
    digest: Digest
    text: str
    chunks: int
    entries: tuple[tuple[str, "array[float]"], ...]


def load_matrix(path: Path, *, name: str = "") -> ImportanceMatrix:
    """Read an importance matrix.

    Args:
        path: The file: GGUF, or the older format that is called .dat.
        name: What to call it instead of the file's name.

    Raises:
        ModelError: It cannot be read, or is no importance matrix.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", hint="check the path") from error
    if len(data) > _MOST_BYTES:
        raise _malformed(path, f"larger than {_MOST_BYTES >> 20} MiB")
    digest, called = Digest.of(data), name or path.name
    if data[: len(MAGIC)] == MAGIC:
        entries, chunks = _read_gguf(path, data)
        return ImportanceMatrix(name=called, digest=digest, text="", chunks=chunks, entries=entries)
    try:
        entries, chunks, text = _read_legacy(data)
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise _malformed(path, "no importance matrix that can be read") from error
    return ImportanceMatrix(name=called, digest=digest, text=text, chunks=chunks, entries=entries)


@contextmanager
def matrix_file(matrix: ImportanceMatrix, store: Store) -> Iterator[Path]:
    """Write a matrix as quantize_worker.py takes it: a line of JSON, then 32-bit numbers of this machine."""
    head = {
        "file": matrix.name,
        "dataset": matrix.text,
        "chunks": matrix.chunks,
        "entries": [[name, len(values)] for name, values in matrix.entries],
    }
    with store.workplace("matrix") as folder:
        path = folder / "matrix"
        with path.open("wb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            for _, values in matrix.entries:
                values.tofile(file)
        yield path


def _read_gguf(path: Path, data: bytes) -> tuple[tuple[tuple[str, "array[float]"], ...], int]:
    header, places = read_gguf_header(path), read_gguf_places(path)
    if header.metadata.get("general.type") != "imatrix":
        raise _malformed(path, "a GGUF file, but no importance matrix")
    shapes = {tensor.name: tensor for tensor in header.tensors}
    found = {
        place.name: _floats(data[place.begin : place.begin + place.size_bytes])
        for place in places.tensors
        if shapes[place.name].type == "F32"
    }
    entries = []
    for sums_name in sorted(found):
        if not sums_name.endswith(_SUMS):
            continue
        name = sums_name.removesuffix(_SUMS)
        sums, counts = found[sums_name], found.get(name + _COUNTS)
        if not counts or len(sums) % len(counts):
            raise _malformed(path, f"{name} has no counts that fit its sums")
        columns = len(sums) // len(counts)
        values = array("f")
        for place, count in enumerate(counts):
            part = sums[place * columns : (place + 1) * columns]
            values.extend(value / count for value in part) if count > 0 else values.extend([1.0] * columns)
        entries.append((name, values))
    if not entries:
        raise _malformed(path, "it holds no sums")
    chunks = header.metadata.get("imatrix.chunk_count", 0)
    return tuple(entries), chunks if isinstance(chunks, int) else 0


def _read_legacy(data: bytes) -> tuple[tuple[tuple[str, "array[float]"], ...], int, str]:
    """Read: number of entries; of each its name, calls, number of values, values; then chunks and the text's name."""
    (count,) = struct.unpack_from("<i", data)
    offset, entries = 4, []
    if count < 1:
        raise ValueError("no entries")
    for _ in range(count):
        name, offset = _legacy_string(data, offset)
        calls, length = struct.unpack_from("<ii", data, offset)
        offset += 8
        if length < 1 or offset + 4 * length > len(data):
            raise ValueError("no values")
        values = _floats(data[offset : offset + 4 * length])
        offset += 4 * length
        entries.append((name, array("f", (value / calls for value in values)) if calls > 0 else values))
    chunks, text = 0, ""
    if offset < len(data):
        (chunks,) = struct.unpack_from("<i", data, offset)
        text = _legacy_string(data, offset + 4)[0] if offset + 4 < len(data) else ""
    return tuple(entries), max(0, chunks), text


def _legacy_string(data: bytes, offset: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<i", data, offset)
    end = offset + 4 + length
    if length < 0 or end > len(data):
        raise ValueError("a name that is cut short")
    return data[offset + 4 : end].decode("utf-8"), end


def _floats(data: bytes) -> "array[float]":
    values = array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _malformed(path: Path, what: str) -> ModelError:
    return ModelError(f"{path}: {what}", hint=_HINT)

"""The importance matrix: how strongly each column of a weight matrix is used, from what multiplies it while a text is read.

For every product of a weight matrix and activations: the sum over tokens of the squares of each column's activations, and
the number of tokens; of experts, for each of them. Written as llama.cpp's own importance matrices are, so that its tools read it too.

Source: llama.cpp tools/imatrix/imatrix.cpp, collect_imatrix() and save_imatrix(), as in llama-cpp-python 0.3.36.
"""

import ctypes
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from edgebuild.gguf import DEFAULT_ALIGNMENT, MAGIC, START, aligned
from edgebuild.gguf_shards import VERSION, make_key, make_string
from edgebuild.model.evaluation.ggml_worker import F32, Ggml, Tensor
from edgebuild.model.evaluation.text_worker import Chunk, Reader
from edgeserve.engine.library import Library
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import EngineError

# Rows that are squared and summed at once.
_ROWS: Final = 64
# llama-imatrix leaves out products of fewer tokens.
_LEAST_TOKENS: Final = 16
_STRING, _ARRAY, _UINT32 = 8, 9, 4  # gguf_metadata_value_type, docs/gguf.md


class _Squares:
    """Adds the squares of rows to a sum, column by column."""

    def __init__(self, ggml: Ggml, columns: int) -> None:
        self._ggml = ggml
        self._row_bytes = 4 * columns
        self._memory = memory = ggml.init(4 * columns * (4 * _ROWS + 8))
        rows = ggml.new_tensor_2d(memory, F32, columns, _ROWS)
        before = ggml.new_tensor_2d(memory, F32, 1, columns)
        turned = ggml.cont(memory, ggml.transpose(memory, ggml.sqr(memory, rows)))
        after = ggml.add(memory, before, ggml.sum_rows(memory, turned))
        self._graph = ggml.graph(memory, after)
        self._rows, self._before, self._after = (ggml.get_data(one) for one in (rows, before, after))

    def add(self, sums: int, rows: Sequence[int]) -> None:
        """Add rows to sums, all given by their addresses."""
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            for place, address in enumerate(some):
                ctypes.memmove(self._rows + place * self._row_bytes, address, self._row_bytes)
            if len(some) < _ROWS:
                left_bytes = (_ROWS - len(some)) * self._row_bytes
                ctypes.memset(self._rows + len(some) * self._row_bytes, 0, left_bytes)
            ctypes.memmove(self._before, sums, self._row_bytes)
            self._ggml.compute(self._graph, threads=1)
            ctypes.memmove(sums, self._after, self._row_bytes)

    def close(self) -> None:
        self._ggml.free(self._memory)


class _Collector:
    """Watches the products while llama.cpp computes; `sums` and `counts` are by name of the weight matrix."""

    def __init__(self, ggml: Ggml) -> None:
        self.sums: dict[str, Any] = {}
        # One count for each matrix of a tensor: experts lie in one tensor.
        self.counts: dict[str, list[int]] = {}
        # An exception cannot pass through llama.cpp.
        self.failure = ""
        self._ggml = ggml
        self._squares: dict[int, _Squares] = {}

    def watch(self, address: int, is_question: bool, _data: object) -> bool:  # noqa: FBT001 - called by llama.cpp
        """Say which tensors are wanted, and take them; see ggml_backend_sched_eval_callback."""
        if is_question:
            return self._is_wanted(address)
        try:
            self._take(address)
        except (MemoryError, EngineError) as error:
            self.failure = str(error)
        return not self.failure

    def _is_wanted(self, address: int) -> bool:
        what = self._ggml.op_desc(address)
        if what == b"MUL_MAT_ID":
            return True
        if what != b"MUL_MAT":
            return False
        weights, activations = self._sources(address)
        return bool(
            weights.name.startswith(b"blk.")
            and activations.type == F32
            and activations.ne[1] >= _LEAST_TOKENS
        )

    def _take(self, address: int) -> None:
        weights, activations = self._sources(address)
        name, columns, matrices = weights.name.decode(), activations.ne[0], weights.ne[2] * weights.ne[3]
        experts = (
            Tensor.from_address(address).src[2] if self._ggml.op_desc(address) == b"MUL_MAT_ID" else None
        )
        if experts is None and matrices != 1:
            raise EngineError(f"{name} is no plain matrix; give a matrix made by llama-imatrix")
        if name not in self.sums:
            self.sums[name], self.counts[name] = (ctypes.c_float * (columns * matrices))(), [0] * matrices
        if columns not in self._squares:
            self._squares[columns] = _Squares(self._ggml, columns)
        taken = {0: _rows(activations)} if experts is None else _rows_by_expert(activations, experts)
        for number, rows in taken.items():
            sums = ctypes.addressof(self.sums[name]) + 4 * columns * number
            self._squares[columns].add(sums, rows)
            self.counts[name][number] += len(rows)

    def _sources(self, address: int) -> tuple[Tensor, Tensor]:
        sources = Tensor.from_address(address).src
        return Tensor.from_address(sources[0]), Tensor.from_address(sources[1])

    def close(self) -> None:
        for squares in self._squares.values():
            squares.close()


def _rows(activations: Tensor) -> list[int]:
    """Return the addresses of all rows."""
    ne, nb, data = activations.ne, activations.nb, activations.data
    return [
        data + one * nb[1] + two * nb[2] + three * nb[3]
        for three in range(ne[3])
        for two in range(ne[2])
        for one in range(ne[1])
    ]


def _rows_by_expert(activations: Tensor, experts: int) -> dict[int, list[int]]:
    """Return the addresses of the rows that each expert is given.

    Args:
        activations: Of shape (columns, 1 or experts used, tokens).
        experts: Address of the numbers of the experts, of shape (experts used, tokens).
    """
    numbers = Tensor.from_address(experts)
    ne, nb, data = activations.ne, activations.nb, activations.data
    found: dict[int, list[int]] = {}
    for token in range(numbers.ne[1]):
        for used in range(numbers.ne[0]):
            place = numbers.data + token * numbers.nb[1] + used * numbers.nb[0]
            row = data + (used % ne[1]) * nb[1] + token * nb[2]
            found.setdefault(ctypes.c_int32.from_address(place).value, []).append(row)
    return found


def collect_matrix(
    library: Library,
    model: LlamaModel,
    chunks: Sequence[Chunk],
    *,
    file: Path,
    text: str,
    threads: int,
    told: Callable[[str], None],
) -> None:
    """Read a text and write the importance matrix that comes of it.

    Args:
        library: llama.cpp.
        model: The model, in 16 bit.
        chunks: The text.
        file: Takes the matrix.
        text: Name of the text, which the matrix carries.
        threads: Threads that compute.
        told: Told how far it is.

    Raises:
        EngineError: The model is of a kind that is not supported, or a forward pass failed.
    """
    ggml = Ggml(library)
    if ggml.tensor_overhead() < ctypes.sizeof(Tensor):
        raise EngineError("this llama.cpp has other tensors than edgebuild knows")
    collector = _Collector(ggml)
    size = max(len(chunk.tokens) for chunk in chunks)
    reader = Reader(library, model, context_tokens=size, threads=threads, watch=collector.watch)
    try:
        for number, chunk in enumerate(chunks, 1):
            told(f"chunk {number}/{len(chunks)}")
            try:
                reader.read(chunk)
            except EngineError as error:
                raise EngineError(collector.failure or str(error)) from error
            if collector.failure:
                raise EngineError(collector.failure)
    finally:
        reader.close()
        collector.close()
    if not collector.sums:
        raise EngineError(f"no chunk has {_LEAST_TOKENS} tokens")
    file.write_bytes(b"".join(_gguf(collector, text=text, chunks=len(chunks), chunk_tokens=size)))


def _gguf(collector: _Collector, *, text: str, chunks: int, chunk_tokens: int) -> Iterator[bytes]:
    """Write as llama-imatrix does: `NAME.in_sum2` and `NAME.counts` of every weight matrix, by name."""
    tensors: list[tuple[str, int, int, bytes]] = []
    for name in sorted(collector.sums):
        sums, counts = collector.sums[name], collector.counts[name]
        columns, matrices = len(sums) // len(counts), len(counts)
        tensors.append((f"{name}.in_sum2", columns, matrices, bytes(sums)))
        tensors.append((f"{name}.counts", 1, matrices, array("f", counts).tobytes()))
    keys = (
        make_key("general.type", struct.pack("<I", _STRING) + make_string("imatrix")),
        make_key("imatrix.datasets", struct.pack("<IIQ", _ARRAY, _STRING, 1) + make_string(text)),
        make_key("imatrix.chunk_count", struct.pack("<II", _UINT32, chunks)),
        make_key("imatrix.chunk_size", struct.pack("<II", _UINT32, chunk_tokens)),
    )
    head = START.pack(MAGIC, VERSION, len(tensors), len(keys)) + b"".join(keys)
    offset = 0
    for title, width, height, data in tensors:
        head += make_string(title) + struct.pack("<IQQIQ", 2, width, height, F32, offset)
        offset += len(_padded(data))
    yield _padded(head)
    for _, _, _, data in tensors:
        yield _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(aligned(len(data), DEFAULT_ALIGNMENT) - len(data))

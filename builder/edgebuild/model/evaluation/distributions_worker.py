"""Next-token distributions by ggml's own operations: as fast as the engine, in memory that does not grow with the text.

A vocabulary of 150 000 tokens makes a distribution of 600 kB, and a text has thousands of them. ggml computes a few rows
at a time with all cores; what is kept is their logarithms in 16 bit, which lie near 0 where the probability is.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from edgebuild.model.evaluation.statistics_worker import Seen
from edgeserve.engine.library import Library

_F32, _F16 = 0, 1  # enum ggml_type, ggml.h
# Arrays of one row that a comparison holds at once: two in 16 bit, eight in 32 bit.
_BYTES_PER_ENTRY: Final = 36
_ROOM_BYTES: Final = 64 << 20
_MOST_ROWS: Final = 64
# Headers of tensors and of the graph.
_HEADERS_BYTES: Final = 1 << 20
# Below any probability that tells anything; ln is -69, where a 32-bit exponential still is a number.
_LEAST: Final = 1e-30


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Plan(ctypes.Structure):
    """`struct ggml_cplan` of ggml-cpu.h."""

    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
    )


class Distributions:
    """A few rows of logits at a time: their log probabilities, and how far they are from those of another model."""

    def __init__(self, library: Library, *, vocabulary: int, threads: int) -> None:
        """Lay out the computation.

        Args:
            library: llama.cpp.
            vocabulary: Tokens of the model: length of a row.
            threads: Threads that compute.
        """
        self.rows = max(1, min(_MOST_ROWS, _ROOM_BYTES // (_BYTES_PER_ENTRY * vocabulary)))
        self._vocabulary, self._threads = vocabulary, threads
        self._ggml = ggml = _Ggml(library)
        self._memory = ggml.init(
            _InitParams(_BYTES_PER_ENTRY * vocabulary * self.rows + _HEADERS_BYTES, None, no_alloc=False)
        )
        memory = self._memory
        logits = ggml.new_tensor_2d(memory, _F32, vocabulary, self.rows)
        base = ggml.new_tensor_2d(memory, _F16, vocabulary, self.rows)
        probabilities = ggml.soft_max(memory, logits)
        logprobs = ggml.log(memory, ggml.clamp(memory, probabilities, _LEAST, 1.0))
        top = ggml.argmax(memory, logits)
        packed = ggml.cast(memory, logprobs, _F16)
        self._look = self._graph(top, logprobs, packed)
        # The base is normalised anew, so that what 16 bit round off counts in the second order only.
        base_logprobs = ggml.cast(memory, base, _F32)
        base_probabilities = ggml.soft_max(memory, base_logprobs)
        difference = ggml.sub(memory, base_logprobs, logprobs)
        sums = ggml.sum_rows(memory, ggml.mul(memory, base_probabilities, difference))
        self._compare = self._graph(top, logprobs, sums)
        self._logits, self._base, self._packed = (ggml.get_data(item) for item in (logits, base, packed))
        self._logprobs, self._base_logprobs = ggml.get_data(logprobs), ggml.get_data(base_logprobs)
        self._base_probabilities = ggml.get_data(base_probabilities)
        self._sums = (ctypes.c_float * self.rows).from_address(ggml.get_data(sums))
        self._top = (ctypes.c_int32 * self.rows).from_address(ggml.get_data(top))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of log probabilities in 16 bit."""
        return 2 * self._vocabulary

    def look(self, logits: int, came: Sequence[int]) -> list[Seen]:
        """Read distributions.

        Args:
            logits: Address of the logits, 32-bit, one row after the other.
            came: The token that came after each; as many as there are rows, at most `rows`.
        """
        self._take(logits, len(came))
        self._run(self._look)
        return self._seen(came)

    @property
    def packed(self) -> memoryview:
        """The log probabilities that `look` computed last, in 16 bit, all rows."""
        return self._view(self._packed)

    @property
    def base(self) -> memoryview:
        """Where the other model's log probabilities go, as `packed` gave them, before `compare`."""
        return self._view(self._base)

    def compare(self, logits: int, came: Sequence[int], base_top: Sequence[int]) -> list[tuple[Seen, float]]:
        """Read distributions, and measure the divergence of each from the other model's in `base`.

        Args:
            logits: As for `look`.
            came: As for `look`.
            base_top: The other model's likeliest token of each row.

        Returns:
            What each says, and Σ p ln(p/q) in nats, p being the other model's distribution.
        """
        self._take(logits, len(came))
        self._run(self._compare)
        found = []
        for row, (seen, top) in enumerate(zip(self._seen(came), base_top, strict=True)):
            # ln Σ exp of the base, by its largest entry, which is the most exact one.
            normaliser = self._at(self._base_logprobs, row, top) - math.log(
                self._at(self._base_probabilities, row, top)
            )
            found.append((seen, self._sums[row] - normaliser))
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._ggml.free(self._memory)

    def _view(self, address: int) -> memoryview:
        return memoryview((ctypes.c_uint8 * (self.row_bytes * self.rows)).from_address(address)).cast("B")

    def _take(self, logits: int, count: int) -> None:
        ctypes.memmove(self._logits, logits, 4 * self._vocabulary * count)

    def _seen(self, came: Sequence[int]) -> list[Seen]:
        return [self._one(row, token) for row, token in enumerate(came)]

    def _one(self, row: int, token: int) -> Seen:
        """Take the token's logit against the likeliest one's, for the least probabilities are cut off."""
        top = self._top[row]
        below = self._at(self._logits, row, token) - self._at(self._logits, row, top)
        return Seen(top=top, logprob=below + self._at(self._logprobs, row, top))

    def _at(self, address: int, row: int, token: int) -> float:
        return ctypes.c_float.from_address(address + 4 * (row * self._vocabulary + token)).value

    def _graph(self, *results: int) -> int:
        graph: int = self._ggml.new_graph(self._memory)
        for result in results:
            self._ggml.build_forward_expand(graph, result)
        return graph

    def _run(self, graph: int) -> None:
        plan = self._ggml.plan(graph, self._threads, None)
        work = ctypes.create_string_buffer(plan.work_size)
        plan.work_data = ctypes.addressof(work)
        if (status := self._ggml.compute(graph, ctypes.byref(plan))) != 0:
            raise MemoryError(f"ggml could not compute: status {status}")


class _Ggml:
    """The few functions of ggml.h and ggml-cpu.h that are needed, with their types; tensors are addresses."""

    def __init__(self, library: Library) -> None:
        base = ctypes.CDLL(str(library.directory / "libggml-base.so"))
        cpu = ctypes.CDLL(str(next(library.directory.glob(f"libggml-cpu-{library.cpu_variant}.so"))))
        address, number = ctypes.c_void_p, ctypes.c_float

        def declare(
            name: str, result: Any, *arguments: Any, source: ctypes.CDLL = base
        ) -> Callable[..., Any]:
            function = getattr(source, f"ggml_{name}")
            function.restype, function.argtypes = result, list(arguments)
            return function  # type: ignore[no-any-return]

        self.init = declare("init", address, _InitParams)
        self.free = declare("free", None, address)
        self.new_tensor_2d = declare(
            "new_tensor_2d", address, address, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
        )
        self.soft_max = declare("soft_max", address, address, address)
        self.clamp = declare("clamp", address, address, address, number, number)
        self.log = declare("log", address, address, address)
        self.argmax = declare("argmax", address, address, address)
        self.cast = declare("cast", address, address, address, ctypes.c_int)
        self.sub = declare("sub", address, address, address, address)
        self.mul = declare("mul", address, address, address, address)
        self.sum_rows = declare("sum_rows", address, address, address)
        self.get_data = declare("get_data", address, address)
        self.new_graph = declare("new_graph", address, address)
        self.build_forward_expand = declare("build_forward_expand", None, address, address)
        self.plan = declare("graph_plan", _Plan, address, ctypes.c_int, address, source=cpu)
        self.compute = declare("graph_compute", ctypes.c_int, address, ctypes.POINTER(_Plan), source=cpu)

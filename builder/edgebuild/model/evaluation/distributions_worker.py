"""Next-token distributions by ggml's own operations: as fast as the engine, in memory that does not grow with the text.

A vocabulary of 150 000 tokens makes a distribution of 600 kB, and a text has thousands of them. ggml computes a few rows
at a time with all cores; what is kept is their logarithms in 16 bit, which lie near 0 where the probability is.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Final

from edgebuild.model.evaluation.ggml_worker import F16, F32, Ggml
from edgebuild.model.evaluation.statistics_worker import Seen
from edgeserve.engine.library import Library

# Arrays of one row that a comparison holds at once: two in 16 bit, eight in 32 bit.
_BYTES_PER_ENTRY: Final = 36
_ROOM_BYTES: Final = 64 << 20
_MOST_ROWS: Final = 64
# Below any probability that tells anything; ln is -69, where a 32-bit exponential still is a number.
_LEAST: Final = 1e-30


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
        self._ggml = ggml = Ggml(library)
        self._memory = memory = ggml.init(_BYTES_PER_ENTRY * vocabulary * self.rows)
        logits = ggml.new_tensor_2d(memory, F32, vocabulary, self.rows)
        base = ggml.new_tensor_2d(memory, F16, vocabulary, self.rows)
        probabilities = ggml.soft_max(memory, logits)
        logprobs = ggml.log(memory, ggml.clamp(memory, probabilities, _LEAST, 1.0))
        top = ggml.argmax(memory, logits)
        packed = ggml.cast(memory, logprobs, F16)
        self._look = ggml.graph(memory, top, logprobs, packed)
        # The base is normalised anew, so that what 16 bit round off counts in the second order only.
        base_logprobs = ggml.cast(memory, base, F32)
        base_probabilities = ggml.soft_max(memory, base_logprobs)
        difference = ggml.sub(memory, base_logprobs, logprobs)
        sums = ggml.sum_rows(memory, ggml.mul(memory, base_probabilities, difference))
        self._compare = ggml.graph(memory, top, logprobs, sums)
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
        self._ggml.compute(self._look, threads=self._threads)
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
        self._ggml.compute(self._compare, threads=self._threads)
        found = []
        for row, (seen, top) in enumerate(zip(self._seen(came), base_top, strict=True)):
            # ln Σ exp of the base, by its largest entry, which is the most exact one.
            normaliser = self._at(self._base_logprobs, row, top) - math.log(
                self._at(self._base_probabilities, row, top)
            )
            found.append((seen, self._sums[row] - normaliser))
        return found

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

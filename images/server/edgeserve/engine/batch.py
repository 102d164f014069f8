"""What goes into one forward pass: llama.cpp's batch structure, and how many prompt tokens may go into it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

# A forward pass that computes prompts holds up every other request for its whole length.
_STALL_S: Final = 0.25
_LONGEST_STEP_S: Final = 1.0
_SMALLEST_CHUNK_TOKENS: Final = 32
_FIRST_CHUNK_TOKENS: Final = 256
_WEIGHT_OF_NEWEST: Final = 0.3


class Batch:
    """A `llama_batch` (llama.h) over arrays of our own, filled anew for every pass; each token is in one sequence."""

    def __init__(self, api: Any, *, capacity: int, sequences: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._tokens = (ctypes.c_int32 * capacity)()
        self._positions = (ctypes.c_int32 * capacity)()
        self._counts = (ctypes.c_int32 * capacity)(*([1] * capacity))
        self._outputs = (ctypes.c_int8 * capacity)()
        self._ids = tuple((ctypes.c_int32 * 1)(number) for number in range(sequences))
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._pointers = tuple(ctypes.cast(identity, pointer) for identity in self._ids)
        self._sequences = (pointer * capacity)()
        self._native = api.llama_batch(
            0,
            ctypes.cast(self._tokens, pointer),
            None,
            ctypes.cast(self._positions, pointer),
            ctypes.cast(self._counts, pointer),
            ctypes.cast(self._sequences, ctypes.POINTER(pointer)),
            ctypes.cast(self._outputs, ctypes.POINTER(ctypes.c_int8)),
        )

    def clear(self) -> None:
        """Take everything out."""
        self.size = 0

    def add_whole(self, tokens: Sequence[int], *, sequence: int) -> None:
        """Append all tokens of a sequence; all have an output."""
        start = self.size
        end = 1 + self.add(tokens, position=0, sequence=sequence, has_output=True)
        self._outputs[start:end] = [1] * len(tokens)

    def add(self, tokens: Sequence[int], *, position: int, sequence: int, has_output: bool) -> int:
        """Append tokens that follow each other in a sequence.

        Args:
            tokens: At least one token id.
            sequence: Number of the sequence.
            position: Position of the first of them in the sequence.
            has_output: Whether the distribution after the last of them is wanted.

        Returns:
            The index in the batch of the last of them.
        """
        start, end = self.size, self.size + len(tokens)
        self._tokens[start:end] = list(tokens)
        self._positions[start:end] = list(range(position, position + len(tokens)))
        self._outputs[start:end] = [0] * len(tokens)
        for index in range(start, end):
            self._sequences[index] = self._pointers[sequence]
        self._outputs[end - 1] = has_output
        self.size = end
        return end - 1

    @property
    def native(self) -> Any:
        """The structure to hand to `llama_decode`."""
        self._native.n_tokens = self.size
        return self._native


class Pace:
    """Measures how fast prompts are computed, to bound the time of a pass instead of its tokens."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0

    def record(self, tokens: int, seconds: float) -> None:
        """Take a pass of at least `_SMALLEST_CHUNK_TOKENS` tokens into account; smaller ones measure something else."""
        if tokens < _SMALLEST_CHUNK_TOKENS or seconds <= 0:
            return
        speed = tokens / seconds
        older = self._tokens_per_s or speed
        self._tokens_per_s = older + _WEIGHT_OF_NEWEST * (speed - older)

    def chunk_tokens(self, room: int, *, others_wait: bool) -> int:
        """Say how many prompt tokens the next pass may hold, at most `room`."""
        if not self._tokens_per_s:
            return min(room, _FIRST_CHUNK_TOKENS)
        seconds = _STALL_S if others_wait else _LONGEST_STEP_S
        return min(room, max(_SMALLEST_CHUNK_TOKENS, int(self._tokens_per_s * seconds)))

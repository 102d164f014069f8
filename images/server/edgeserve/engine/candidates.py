"""The vocabulary's tokens with their logits, as llama.cpp's samplers take them, filled without a loop in Python."""

from __future__ import annotations

import ctypes
import math
from array import array
from typing import Any, Final

_FIELDS: Final = 3  # llama_token_data: id, logit, p, of four bytes each
_NOT_SORTED: Final = False  # a C bool


class Candidates:
    """One `llama_token_data_array` (llama.h), filled anew for each use.

    A memory view copies logits into every third place of the array as fast as C, so that numpy is not needed.
    """

    def __init__(self, api: Any, vocabulary_tokens: int) -> None:
        self._api = api
        self._size = vocabulary_tokens
        self._item: Any = api.llama_token_data
        self._data = (self._item * vocabulary_tokens)()
        numbers = memoryview(self._data).cast("B")
        self._floats = numbers.cast("f")
        numbers.cast("i")[::_FIELDS] = memoryview(array("i", range(vocabulary_tokens)))
        self._blank = bytes(numbers)
        self._pointer = ctypes.cast(self._data, ctypes.POINTER(self._item))
        self._array = api.llama_token_data_array(self._pointer, vocabulary_tokens, -1, _NOT_SORTED)
        # The softmax of a draw gives the denominator; what it draws is not looked at.
        self._softmax = api.llama_sampler_init_dist(0)
        self._greedy = api.llama_sampler_init_greedy()

    def fill(self, context: int, index: int) -> None:
        """Take the logits after a token of the last forward pass; `index` is its place in the batch."""
        logits = self._api.llama_get_logits_ith(context, index)
        source = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self._size)).contents
        ctypes.memmove(self._data, self._blank, len(self._blank))
        self._floats[1::_FIELDS] = memoryview(source).cast("B").cast("f")
        self._reset(self._size)

    def fill_one(self, token: int) -> None:
        """Hold one token alone."""
        self._data[0].id, self._data[0].logit, self._data[0].p = token, 0.0, 0.0
        self._reset(1)

    def _reset(self, size: int) -> None:
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._pointer, size, -1, _NOT_SORTED

    def apply(self, sampler: int) -> None:
        """Let a sampler cut, change or select."""
        self._api.llama_sampler_apply(sampler, ctypes.byref(self._array))

    @property
    def selected(self) -> int | None:
        """The token that a sampler has drawn, None if it is ruled out."""
        item = self._array.data[self._array.selected]
        return int(item.id) if item.logit > -math.inf else None

    def is_possible(self) -> bool:
        """Whether the first token is not ruled out."""
        return bool(self._array.data[0].logit > -math.inf)

    def best(self) -> int | None:
        """Return the likeliest token, None if all are ruled out."""
        self.apply(self._greedy)
        return self.selected

    def likelihoods(
        self, context: int, index: int, *, token: int, count: int
    ) -> tuple[list[tuple[int, float]], float]:
        """Look into the model's own distribution after a token of the last forward pass.

        Args:
            context: Address of llama.cpp's context.
            index: The token's place in the batch.
            token: The one that was drawn.
            count: How many of the likeliest to give.

        Returns:
            The likeliest tokens with their log probabilities, in order, and the log probability of the drawn one.
        """
        self.fill(context, index)
        logit = float(self._data[token].logit)
        self.apply(self._softmax)
        top = self._api.llama_sampler_init_top_k(max(1, count))
        self.apply(top)
        self._api.llama_sampler_free(top)
        data = self._array.data
        # log softmax(x) = x - log(sum(exp(x))); the likeliest token's probability cannot underflow.
        denominator = data[0].logit - math.log(data[0].p)
        ranks = range(min(count, self._array.size))
        ranked = [(int(data[rank].id), float(data[rank].logit) - denominator) for rank in ranks]
        return ranked, logit - denominator

    def close(self) -> None:
        """Free what belongs to llama.cpp."""
        self._api.llama_sampler_free(self._softmax)
        self._api.llama_sampler_free(self._greedy)

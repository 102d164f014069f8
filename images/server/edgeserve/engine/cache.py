"""The key/value cache, one sequence per slot: what may be kept, copied from another sequence, and forgotten."""

from __future__ import annotations

from typing import Any

from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import EngineError


class Cache:
    """llama.cpp's memory of one context; positions are those of the tokens in their sequence, from 0 on."""

    def __init__(self, api: Any, context: int, model: LlamaModel) -> None:
        self._api = api
        self._memory = api.llama_get_memory(context)
        self._has_parts = not model.has_state
        self.can_shift = self._has_parts and bool(api.llama_memory_can_shift(self._memory))

    def keep(self, sequence: int, tokens: int) -> int:
        """Forget all but the first `tokens` of a sequence, or all where the model cannot keep a part.

        Returns:
            The number of tokens kept.
        """
        api, memory = self._api, self._memory
        # A sliding window or a recurrent state may no longer hold the beginning.
        is_whole = tokens > 0 and api.llama_memory_seq_pos_min(memory, sequence) == 0
        if is_whole and api.llama_memory_seq_rm(memory, sequence, tokens, -1):
            return tokens
        api.llama_memory_seq_rm(memory, sequence, -1, -1)
        return 0

    def copy(self, source: int, target: int) -> bool:
        """Make `target` what `source` is, by a copy of its memory at the next pass.

        Returns:
            Whether the copy can be cut to a part of it; where not, nothing was copied.
        """
        if self._has_parts:
            # Only whole sequences can be copied between streams (llama-kv-cache.cpp, seq_cp).
            self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        return self._has_parts

    def shift(self, sequence: int, *, start: int, end: int) -> None:
        """Forget the tokens from `start` to before `end` and move all that follow to their places, where `can_shift`.

        Raises:
            EngineError: llama.cpp refuses.
        """
        api, memory = self._api, self._memory
        if not api.llama_memory_seq_rm(memory, sequence, start, end):
            raise EngineError("llama.cpp cannot forget a part of a sequence")
        api.llama_memory_seq_add(memory, sequence, end, -1, start - end)

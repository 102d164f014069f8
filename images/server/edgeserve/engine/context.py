"""llama.cpp's context and its computing threads, made as the settings say."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

from edgeserve.engine.library import Library
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import EngineError
from edgeserve.settings import EngineSettings

_LARGEST_PASS_TOKENS: Final = 512
_KV_TYPES: Final = {
    "f16": "GGML_TYPE_F16",
    "q8_0": "GGML_TYPE_Q8_0",
    "q4_0": "GGML_TYPE_Q4_0",
}
_FLASH_ATTENTION: Final = {
    "auto": "LLAMA_FLASH_ATTN_TYPE_AUTO",
    "on": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
    "off": "LLAMA_FLASH_ATTN_TYPE_DISABLED",
}


class LlamaContext:
    """A context with its threads.

    Attributes:
        pointer: llama.cpp's `llama_context`.
        threads: Threads that compute passes of one token.
        batch_threads: Threads that compute passes of more.
    """

    def __init__(self, library: Library, model: LlamaModel, settings: EngineSettings) -> None:
        self._library = library
        self._api: Any = library.api
        # Threads wait for each other spinning, several hundred times in a pass: two on one core take turns of milliseconds.
        cores = len(os.sched_getaffinity(0))
        self.threads = min(settings.threads or cores, cores)
        self.batch_threads = min(settings.batch_threads or self.threads, cores)
        self.pointer = self._make(model, settings)
        self._pools = self._attach_pools()

    def _make(self, model: LlamaModel, settings: EngineSettings) -> int:
        params = self._params(settings)
        params.n_ctx = settings.context_tokens * settings.slots
        params.n_seq_max = settings.slots
        params.n_batch = settings.batch_tokens
        params.n_ubatch = min(settings.batch_tokens, _LARGEST_PASS_TOKENS)
        # Only the last token of each sequence has an output; the default reserves one per token of the batch.
        params.n_outputs_max = settings.slots
        # Sequences rarely share a prefix while they run, so each has its own part of the cache (llama.h, kv_unified).
        params.kv_unified = False
        context = self._open(
            model, params, f"no context of {settings.slots} x {settings.context_tokens} tokens"
        )
        if self._api.llama_n_ctx_seq(context) < settings.context_tokens:
            raise EngineError(f"llama.cpp gives a slot fewer than {settings.context_tokens} tokens")
        return context

    def _params(self, settings: EngineSettings) -> Any:
        """Set what does not depend on what the context is for."""
        params = self._api.llama_context_default_params()
        params.n_threads, params.n_threads_batch = self.threads, self.batch_threads
        params.type_k = params.type_v = getattr(self._api, _KV_TYPES[settings.kv_type])
        params.flash_attn_type = getattr(self._api, _FLASH_ATTENTION[settings.flash_attention])
        params.no_perf = True
        return params

    def _open(self, model: LlamaModel, params: Any, complaint: str) -> int:
        self._library.forget_complaints()
        context = self._api.llama_init_from_model(model.pointer, params)
        if not context:
            raise EngineError(complaint + self._library.last_complaint())
        return int(context)

    def _attach_pools(self) -> tuple[int, ...]:
        """Give the context its threads; one pool serves both kinds of passes where they have as many threads."""
        if max(self.threads, self.batch_threads) < 2:
            return ()
        pools = tuple(
            self._library.make_threadpool(count) for count in sorted({self.threads, self.batch_threads})
        )
        if all(pools):
            small, large = pools[0], pools[-1]
            attach = ctypes.CDLL(str(self._library.directory / "libllama.so")).llama_attach_threadpool
            attach.argtypes, attach.restype = [ctypes.c_void_p] * 3, None
            attach(
                self.pointer,
                small if self.threads <= self.batch_threads else large,
                large if self.threads <= self.batch_threads else small,
            )
        return pools

    def close(self) -> None:
        """Free the context, then its threads."""
        self._api.llama_free(self.pointer)
        for pool in self._pools:
            if pool:
                self._library.free_threadpool(pool)

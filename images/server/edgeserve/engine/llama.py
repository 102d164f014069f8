"""llama.cpp as an `Engine`: continuous batching over its low-level interface.

Each slot is one sequence of llama.cpp's key/value cache. A forward pass holds one token of every request that is
generating and, in the room left, a share of every prompt still to be computed. A slot keeps its cache when its request
ends; a later prompt that starts alike takes that slot and computes only the rest.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any, Final

from edgeserve.engine.batch import Batch, Pace
from edgeserve.engine.library import Library
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import (
    EngineError,
    EngineStats,
    Event,
    Finish,
    FinishReason,
    ModelFacts,
    Request,
    Token,
)
from edgeserve.engine.sampling import make_chain
from edgeserve.log import Log
from edgeserve.settings import EngineSettings

_LARGEST_PASS_TOKENS: Final = 512
_FAILURES_IN_A_ROW: Final = 3
_KV_TYPES: Final = {
    "f16": "GGML_TYPE_F16",
    "q8_0": "GGML_TYPE_Q8_0",
    "q4_0": "GGML_TYPE_Q4_0",
}


class _Slot:
    """One sequence of the cache and the request that holds it, if any."""

    __slots__ = (
        "cached",
        "chain",
        "last_token",
        "last_used",
        "number",
        "output_tokens",
        "request",
        "reused_tokens",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.cached: list[int] = []
        self.request: Request | None = None
        self.chain = 0
        self.reused_tokens = 0
        self.output_tokens = 0
        self.last_token = 0
        self.last_used = 0

    @property
    def is_generating(self) -> bool:
        return self.request is not None and self.output_tokens > 0

    @property
    def prompt_tokens_left(self) -> int:
        if self.request is None or self.output_tokens > 0:
            return 0
        return len(self.request.prompt) - len(self.cached)


class LlamaEngine:
    """See `Engine`. The constructor loads the model, which takes as long as reading the file."""

    def __init__(self, files: tuple[str, ...], settings: EngineSettings, log: Log) -> None:
        library = Library(settings.library_dir, log)
        self._api: Any = library.api
        self._library = library
        self._model = LlamaModel(library, files)
        if not self._model.is_generative:
            raise EngineError(f"{files[0]}: the model does not generate text")
        threads = settings.threads or len(os.sched_getaffinity(0))
        self._context = self._make_context(settings, threads)
        self._memory = self._api.llama_get_memory(self._context)
        self._pool = self._attach_pool(threads)
        self._batch = Batch(self._api, capacity=settings.batch_tokens, sequences=settings.slots)
        self._pace = Pace()
        self._slots = tuple(_Slot(number) for number in range(settings.slots))
        self._by_request: dict[str, _Slot] = {}
        self._steps = self._prompt_tokens = self._cached_tokens = self._output_tokens = 0
        self._failures = 0
        self._facts = self._make_facts(settings, threads)

    def _make_context(self, settings: EngineSettings, threads: int) -> int:
        params = self._api.llama_context_default_params()
        params.n_ctx = settings.context_tokens * settings.slots
        params.n_seq_max = settings.slots
        params.n_batch = settings.batch_tokens
        params.n_ubatch = min(settings.batch_tokens, _LARGEST_PASS_TOKENS)
        # Only the last token of each sequence has an output; the default reserves one per token of the batch.
        params.n_outputs_max = settings.slots
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = getattr(self._api, _KV_TYPES[settings.kv_type])
        # Sequences rarely share a prefix while they run, so each has its own part of the cache (llama.h, kv_unified).
        params.kv_unified = False
        params.no_perf = True
        self._library.forget_complaints()
        context = self._api.llama_init_from_model(self._model.pointer, params)
        if not context:
            raise EngineError(
                f"no context of {settings.slots} x {settings.context_tokens} tokens{self._library.last_complaint()}"
            )
        if self._api.llama_n_ctx_seq(context) < settings.context_tokens:
            raise EngineError(f"llama.cpp gives a slot fewer than {settings.context_tokens} tokens")
        return int(context)

    def _attach_pool(self, threads: int) -> int:
        if threads < 2:
            return 0
        pool = self._library.make_threadpool(threads)
        if pool:
            attach = ctypes.CDLL(str(self._library.directory / "libllama.so")).llama_attach_threadpool
            attach.argtypes, attach.restype = [ctypes.c_void_p] * 3, None
            attach(self._context, pool, pool)
        return pool

    def _make_facts(self, settings: EngineSettings, threads: int) -> ModelFacts:
        model = self._model
        return ModelFacts(
            description=model.description,
            cpu_variant=self._library.cpu_variant,
            context_tokens=settings.context_tokens,
            trained_context_tokens=model.trained_context_tokens,
            slots=settings.slots,
            threads=threads,
            vocabulary_tokens=model.vocabulary_tokens,
            chat_template=model.chat_template,
            bos_text=model.text_of(model.bos_token),
            eos_text=model.text_of(model.eos_token),
            bos_token=model.bos_token,
            add_bos=model.adds_bos,
            control_texts=model.control_texts(),
        )

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        return self._facts

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Turn text into tokens, from any thread."""
        return self._model.tokenize(text, special=special)

    def submit(self, request: Request) -> None:
        """Give the request the free slot whose cache starts most like its prompt."""
        free = [slot for slot in self._slots if slot.request is None]
        if not free:
            raise EngineError("no slot is free")
        if not request.prompt or len(request.prompt) + request.output_tokens > self._facts.context_tokens:
            raise EngineError("the request does not fit the context")
        shared = {slot.number: _common_prefix(slot.cached, request.prompt) for slot in free}
        slot = max(free, key=lambda one: (shared[one.number], -one.last_used))
        # At least one token has to be computed, for the distribution after it.
        keep = self._cut(slot, min(shared[slot.number], len(request.prompt) - 1))
        slot.chain = make_chain(
            self._api,
            request.sampling,
            vocabulary_tokens=self._facts.vocabulary_tokens,
            output_tokens=request.output_tokens,
        )
        slot.request, slot.reused_tokens, slot.output_tokens = request, keep, 0
        slot.last_used = self._steps
        self._cached_tokens += keep
        self._by_request[request.id] = slot

    def _cut(self, slot: _Slot, keep: int) -> int:
        """Forget all but the first `keep` tokens of the slot's cache, or all where the model cannot keep a part.

        Returns:
            The number of tokens kept.
        """
        api, memory, number = self._api, self._memory, slot.number
        # A sliding window or a recurrent state may no longer hold the beginning.
        whole = keep > 0 and api.llama_memory_seq_pos_min(memory, number) == 0
        if not (whole and api.llama_memory_seq_rm(memory, number, keep, -1)):
            api.llama_memory_seq_rm(memory, number, -1, -1)
            keep = 0
        del slot.cached[keep:]
        return keep

    def step(self) -> tuple[Event, ...]:
        """Run one forward pass and draw the next token of every request that is due one."""
        added, due = self._fill()
        if not self._batch.size:
            return ()
        started = time.perf_counter()
        code = self._api.llama_decode(self._context, self._batch.native)
        self._steps += 1
        if code != 0:
            return self._fail(tuple(slot for slot, _ in added), code)
        self._pace.record(self._batch.size, time.perf_counter() - started)
        self._failures = 0
        for slot, tokens in added:
            if not slot.is_generating:
                self._prompt_tokens += len(tokens)
            slot.cached.extend(tokens)
        events: list[Event] = []
        for slot, index in due:
            events.extend(self._draw(slot, index))
        return tuple(events)

    def _fill(self) -> tuple[list[tuple[_Slot, list[int]]], list[tuple[_Slot, int]]]:
        """Fill the batch.

        Returns:
            The tokens added for each slot, and for each slot that is due a token its index in the batch.
        """
        batch = self._batch
        batch.clear()
        added: list[tuple[_Slot, list[int]]] = []
        due: list[tuple[_Slot, int]] = []
        for slot in self._slots:
            if slot.is_generating:
                tokens = [slot.last_token]
                index = batch.add(tokens, position=len(slot.cached), sequence=slot.number, has_output=True)
                added.append((slot, tokens))
                due.append((slot, index))
        waiting = sorted(
            (slot for slot in self._slots if slot.prompt_tokens_left), key=lambda one: one.prompt_tokens_left
        )
        room = self._pace.chunk_tokens(batch.capacity - batch.size, others_wait=bool(due)) if waiting else 0
        for nth, slot in enumerate(waiting):
            # Shortest first, and what one does not use is shared among the rest: a long prompt starves nobody.
            share = min(slot.prompt_tokens_left, room // (len(waiting) - nth))
            if not share or slot.request is None:
                continue
            start = len(slot.cached)
            tokens = list(slot.request.prompt[start : start + share])
            is_last = share == slot.prompt_tokens_left
            index = batch.add(tokens, position=start, sequence=slot.number, has_output=is_last)
            room -= share
            added.append((slot, tokens))
            if is_last:
                due.append((slot, index))
        return added, due

    def _draw(self, slot: _Slot, index: int) -> tuple[Event, ...]:
        request = slot.request
        assert request is not None
        token = self._api.llama_sampler_sample(slot.chain, self._context, index)
        slot.last_token = token
        slot.output_tokens += 1
        self._output_tokens += 1
        if self._model.is_end(token):
            return (self._finish(slot, request, FinishReason.STOP),)
        event = Token(request_id=request.id, token=token, piece=self._model.piece(token))
        if slot.output_tokens >= request.output_tokens:
            return event, self._finish(slot, request, FinishReason.LENGTH)
        return (event,)

    def _fail(self, slots: tuple[_Slot, ...], code: int) -> tuple[Event, ...]:
        """End the requests of a failed pass; their part of the cache is in an unknown state (llama.h, llama_decode)."""
        self._failures += 1
        if self._failures >= _FAILURES_IN_A_ROW:
            raise EngineError(f"{self._failures} forward passes failed in a row, the last with code {code}")
        events: list[Event] = []
        for slot in slots:
            if slot.request is not None:
                events.append(self._finish(slot, slot.request, FinishReason.FAILED))
            self._cut(slot, 0)
        return tuple(events)

    def _finish(self, slot: _Slot, request: Request, reason: FinishReason) -> Finish:
        self._api.llama_sampler_free(slot.chain)
        del self._by_request[request.id]
        slot.chain, slot.request = 0, None
        finish = Finish(
            request_id=request.id,
            reason=reason,
            prompt_tokens=len(request.prompt),
            cached_tokens=slot.reused_tokens,
            output_tokens=slot.output_tokens,
        )
        slot.output_tokens = slot.reused_tokens = 0
        return finish

    def cancel(self, request_id: str) -> Finish | None:
        """Free the request's slot at once."""
        slot = self._by_request.get(request_id)
        if slot is None or slot.request is None:
            return None
        return self._finish(slot, slot.request, FinishReason.CANCELLED)

    def stats(self) -> EngineStats:
        """Count."""
        return EngineStats(
            slots=len(self._slots),
            busy_slots=len(self._by_request),
            kv_tokens=sum(len(slot.cached) for slot in self._slots),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            output_tokens=self._output_tokens,
            steps=self._steps,
        )

    def close(self) -> None:
        """Free samplers, context, threads and weights."""
        for request_id in tuple(self._by_request):
            self.cancel(request_id)
        self._api.llama_free(self._context)
        if self._pool:
            self._library.free_threadpool(self._pool)
        self._model.close()


def _common_prefix(cached: list[int], prompt: tuple[int, ...]) -> int:
    """Count the tokens with which both start, by halving: comparing slices is far faster than a loop."""
    low, high = 0, min(len(cached), len(prompt))
    mine = tuple(cached[:high])
    while low < high:
        middle = (low + high + 1) // 2
        if mine[low:middle] == prompt[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low

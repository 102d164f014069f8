"""llama.cpp as an `Engine`: continuous batching over its low-level interface.

Each slot is one sequence of llama.cpp's key/value cache. A forward pass holds one token of every request that is
generating and, in the room left, a share of every prompt still to be computed. A slot keeps its cache when its request
ends; a later prompt that starts alike takes that slot and computes only the rest.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

from edgeserve.engine.batch import Batch, Pace
from edgeserve.engine.cache import Cache
from edgeserve.engine.context import LlamaContext
from edgeserve.engine.failures import Failures
from edgeserve.engine.library import Library
from edgeserve.engine.locked_memory import lock_memory
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import (
    EmbeddingRequest,
    EngineError,
    EngineStats,
    Event,
    Finish,
    FinishReason,
    ModelFacts,
    Request,
    Token,
)
from edgeserve.engine.sampling import DeadEndError, Sampler, SamplerMaker
from edgeserve.settings import EngineSettings

# A copy moves the memory of a whole slot, which takes about as long as computing a few tokens.
_WORTH_COPYING_TOKENS: Final = 32


class _Slot:
    """One sequence of the cache and the request that holds it, if any.

    Of `cached`, only the first `pure_tokens` (None: all) were computed from nothing but the tokens before them.
    """

    __slots__ = (
        "cached",
        "last_token",
        "last_used",
        "number",
        "output_tokens",
        "pure_tokens",
        "request",
        "reused_tokens",
        "sampler",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.cached: list[int] = []
        self.pure_tokens: int | None = None
        self.request: Request | None = None
        self.sampler: Sampler | None = None
        self.reused_tokens = 0
        self.output_tokens = 0
        self.last_token = 0
        self.last_used = 0

    @property
    def is_generating(self) -> bool:
        return self.request is not None and self.output_tokens > 0

    @property
    def prompt_tokens(self) -> int:
        return 0 if self.request is None else len(self.request.prompt)

    def shares(self, prompt: tuple[int, ...]) -> int:
        """Count the tokens at the start of the prompt that the cache holds."""
        return _common_prefix(self.cached[: self.pure_tokens], prompt)

    @property
    def prompt_tokens_left(self) -> int:
        if self.request is None or self.output_tokens > 0:
            return 0
        return len(self.request.prompt) - len(self.cached)


class LlamaEngine:
    """See `Engine`."""

    def __init__(self, library: Library, model: LlamaModel, settings: EngineSettings) -> None:
        self._api: Any = library.api
        self._library = library
        self._model = model
        if not model.is_generative:
            raise EngineError(f"{model.file}: the model neither generates text nor embeds any")
        self._llama_context = LlamaContext(library, self._model, settings)
        self._context = self._llama_context.pointer
        self._cache = Cache(self._api, self._context, self._model)
        self._can_shift = settings.past_context == "shift"
        self._keep_tokens = settings.keep_tokens
        if self._can_shift and not self._cache.can_shift:
            raise EngineError(
                f"{model.file}: past_context is shift, which this model's cache cannot do; set it to stop"
            )
        self._batch = Batch(self._api, capacity=settings.batch_tokens, sequences=settings.slots)
        self._pace = Pace()
        self._slots = tuple(_Slot(number) for number in range(settings.slots))
        self._by_request: dict[str, _Slot] = {}
        self._samplers = SamplerMaker(self._api, self._model)
        self._steps = self._prompt_tokens = self._cached_tokens = self._output_tokens = 0
        self._failures = Failures()
        self._facts = self._make_facts(settings)
        if settings.mlock:
            lock_memory()

    def _make_facts(self, settings: EngineSettings) -> ModelFacts:
        model = self._model
        facts = model.facts(
            self._library,
            settings,
            context_tokens=settings.context_tokens,
            threads=self._llama_context.threads,
        )
        return replace(
            facts,
            can_shift=self._can_shift,
            chat_template=model.chat_template,
            end_texts=model.end_texts(),
        )

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        return self._facts

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Turn text into tokens, from any thread."""
        return self._model.tokenize(text, special=special)

    def submit(self, request: Request | EmbeddingRequest) -> None:
        """Give the request the free slot whose cache starts most like its prompt."""
        if isinstance(request, EmbeddingRequest):
            raise EngineError("the model embeds no texts")
        free = [slot for slot in self._slots if slot.request is None]
        if not free:
            raise EngineError("no slot is free")
        in_context = 1 if self._can_shift else request.output_tokens
        if not request.prompt or len(request.prompt) + in_context > self._facts.context_tokens:
            raise EngineError("the request does not fit the context")
        slot = max(free, key=lambda one: (one.shares(request.prompt), -one.last_used))
        keep = self._reuse(slot, request.prompt)
        slot.sampler = self._samplers.make(request.sampling, output_tokens=request.output_tokens)
        slot.request, slot.reused_tokens, slot.output_tokens = request, keep, 0
        slot.last_used = self._steps
        self._cached_tokens += keep
        self._by_request[request.id] = slot

    def _reuse(self, slot: _Slot, prompt: tuple[int, ...]) -> int:
        """Leave in the slot's cache what the prompt starts with, copied from another slot if that one has more of it.

        Returns:
            The number of tokens that need not be computed: at most all but the last, whose distribution is wanted.
        """
        shared = {one.number: one.shares(prompt) for one in self._slots}
        donor = max(self._slots, key=lambda one: shared[one.number])
        gain = shared[donor.number] - shared[slot.number]
        if gain >= _WORTH_COPYING_TOKENS and self._cache.copy(donor.number, slot.number):
            slot.cached, slot.pure_tokens = donor.cached.copy(), donor.pure_tokens
            shared[slot.number] = shared[donor.number]
        return self._cut(slot, min(shared[slot.number], len(prompt) - 1))

    def _cut(self, slot: _Slot, tokens: int) -> int:
        """Forget all but the first `tokens` of the slot's cache; returns how many could be kept."""
        kept = self._cache.keep(slot.number, tokens)
        del slot.cached[kept:]
        slot.pure_tokens = None
        return kept

    def _make_room(self, slot: _Slot) -> None:
        """Forget the older half of what follows the first tokens of a full slot, so that it can go on."""
        start = min(self._keep_tokens, slot.prompt_tokens)
        end = start + (len(slot.cached) - start) // 2
        self._cache.shift(slot.number, start=start, end=end)
        del slot.cached[start:end]
        # What follows was computed while the forgotten part was there.
        slot.pure_tokens = start

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
        self._failures.in_a_row = 0
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
                if len(slot.cached) == self._facts.context_tokens:
                    self._make_room(slot)
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
        request, sampler = slot.request, slot.sampler
        assert request is not None
        assert sampler is not None
        try:
            token = sampler.draw(self._context, index)
        except DeadEndError:
            return (self._finish(slot, request, FinishReason.FAILED),)
        slot.last_token = token
        slot.output_tokens += 1
        self._output_tokens += 1
        if self._model.is_end(token) and not request.ignores_end:
            return (self._finish(slot, request, FinishReason.STOP),)
        count = request.sampling.logprobs
        event = Token(
            request_id=request.id,
            token=token,
            piece=self._model.piece(token) or self._spelling(token, request),
            logprobs=None if count is None else self._samplers.logprobs(self._context, index, token, count),
        )
        if slot.output_tokens >= request.output_tokens:
            return event, self._finish(slot, request, FinishReason.LENGTH)
        return (event,)

    def _spelling(self, token: int, request: Request) -> bytes:
        return self._model.text_of(token).encode() if token in request.sampling.spoken else b""

    def _fail(self, slots: tuple[_Slot, ...], code: int) -> tuple[Event, ...]:
        """End the requests of a failed pass; their part of the cache is in an unknown state (llama.h, llama_decode)."""
        self._failures.add(code)
        events: list[Event] = []
        for slot in slots:
            if slot.request is not None:
                events.append(self._finish(slot, slot.request, FinishReason.FAILED))
            self._cut(slot, 0)
        return tuple(events)

    def _finish(self, slot: _Slot, request: Request, reason: FinishReason) -> Finish:
        if slot.sampler is not None:
            slot.sampler.close()
        del self._by_request[request.id]
        slot.sampler = slot.request = None
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
        self._samplers.close()
        self._llama_context.close()
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

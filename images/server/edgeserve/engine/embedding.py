"""llama.cpp as an `Engine` that embeds texts: several of them, of several requests, in one forward pass.

A text is computed as a whole, since its vector is made of all its tokens: the context is one pass long.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from dataclasses import replace
from typing import Any, Final

from edgeserve.engine.batch import Batch, Pace
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
    Vector,
)
from edgeserve.settings import EngineSettings

_MEAN, _CLS, _LAST = 1, 2, 3  # enum llama_pooling_type, llama.h
_MOST_TOGETHER: Final = 16


class EmbeddingContext(LlamaContext):
    """A context for passes of whole texts.

    Attributes:
        tokens: Most tokens of one pass.
    """

    def _make(self, model: LlamaModel, settings: EngineSettings) -> int:
        trained = model.trained_context_tokens or settings.context_tokens
        # llama.cpp keeps logits of every token of a pass, whether they are looked at or not: so much of the vocabulary's size.
        self.tokens = min(settings.context_tokens, settings.batch_tokens, trained)
        params = self._params(settings)
        # llama.cpp reserves a graph for as many tokens of each text (llama-context.cpp, graph_reserve); the mean of fewer
        # than that, it cannot build, and ends the process.
        whole = -(-self.tokens // _MOST_TOGETHER) * _MOST_TOGETHER
        params.n_ctx = params.n_batch = params.n_ubatch = whole
        params.n_seq_max = _MOST_TOGETHER
        params.embeddings = True
        params.kv_unified = True
        return self._open(model, params, f"no context of {self.tokens} tokens")


class _Job:
    """A request and the texts of it that are still to be computed."""

    __slots__ = ("left", "made", "request")

    def __init__(self, request: EmbeddingRequest) -> None:
        self.request = request
        self.left = deque(request.prompts)
        self.made = 0


class EmbeddingEngine:
    """See `Engine`."""

    def __init__(self, library: Library, model: LlamaModel, settings: EngineSettings) -> None:
        if model.pooling not in {_MEAN, _CLS, _LAST}:
            raise EngineError(f"{model.file}: a model that ranks texts is not supported")
        self._api: Any = library.api
        self._model = model
        self._context = EmbeddingContext(library, model, settings)
        self._memory = self._api.llama_get_memory(self._context.pointer)
        self._batch = Batch(self._api, capacity=self._context.tokens, sequences=_MOST_TOGETHER)
        self._pace = Pace()
        self._slots = settings.slots
        # In the order of their turns.
        self._jobs: dict[str, _Job] = {}
        self._steps = self._prompt_tokens = 0
        self._failures = Failures()
        self._facts = self._make_facts(library, settings)
        if settings.mlock:
            lock_memory()

    def _make_facts(self, library: Library, settings: EngineSettings) -> ModelFacts:
        model = self._model
        bare, whole = model.tokenize("a", special=False), model.tokenize("a", special=False, whole=True)
        places = range(len(whole) if bare else 0)
        start = next((place for place in places if whole[place : place + len(bare)] == bare), None)
        if start is None:
            raise EngineError(f"{model.file}: its vocabulary does not put the same tokens around every text")
        facts = model.facts(
            library, settings, context_tokens=self._context.tokens, threads=self._context.threads
        )
        return replace(
            facts,
            vector_length=model.vector_length,
            text_prefix=whole[:start],
            text_suffix=whole[start + len(bare) :],
        )

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        return self._facts

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Turn text into tokens, from any thread."""
        return self._model.tokenize(text, special=special)

    def submit(self, request: Request | EmbeddingRequest) -> None:
        """Have a request wait for its turn in the next passes."""
        if not isinstance(request, EmbeddingRequest):
            raise EngineError("the model generates no text")
        if len(self._jobs) >= self._slots:
            raise EngineError("no slot is free")
        if not request.prompts or not all(0 < len(one) <= self._context.tokens for one in request.prompts):
            raise EngineError("the request does not fit the context")
        self._jobs[request.id] = _Job(request)

    def step(self) -> tuple[Event, ...]:
        """Embed as many texts as fit one pass, of each request in turn."""
        taken = self._fill()
        if not taken:
            return ()
        if self._memory:
            self._api.llama_memory_clear(self._memory, False)  # noqa: FBT003 - a C bool: the positions, not the data
        started = time.perf_counter()
        code = self._api.llama_decode(self._context.pointer, self._batch.native)
        self._steps += 1
        if code != 0:
            return self._fail(taken, code)
        self._failures.in_a_row = 0
        self._pace.record(self._batch.size, time.perf_counter() - started)
        self._prompt_tokens += self._batch.size
        events: list[Event] = []
        for sequence, job in enumerate(taken):
            if job.request.id in self._jobs:
                events.extend(self._take(sequence, job))
        return tuple(events)

    def _fill(self) -> list[_Job]:
        """Fill the batch; returns whose text each of its sequences is."""
        self._batch.clear()
        taken: list[_Job] = []
        room = self._pace.chunk_tokens(self._batch.capacity, others_wait=False)
        while len(taken) < _MOST_TOGETHER:
            waiting = [job for job in self._jobs.values() if job.left]
            if not waiting or (taken and len(waiting[0].left[0]) > room):
                break
            job, prompt = waiting[0], waiting[0].left.popleft()
            self._batch.add_whole(prompt, sequence=len(taken))
            room -= len(prompt)
            taken.append(job)
            self._jobs[job.request.id] = self._jobs.pop(job.request.id)
        return taken

    def _take(self, sequence: int, job: _Job) -> tuple[Event, ...]:
        """Read the vector of a sequence."""
        pointer = self._api.llama_get_embeddings_seq(self._context.pointer, sequence)
        values = pointer[: self._facts.vector_length] if pointer else []
        length = math.hypot(*values)
        if not 0 < length < math.inf:
            return (self._finish(job, FinishReason.FAILED),)
        unit = array("f", [value / length for value in values]).tobytes()
        vector = Vector(request_id=job.request.id, values=unit)
        job.made += 1
        is_last = job.made == len(job.request.prompts)
        return (vector, self._finish(job, FinishReason.STOP)) if is_last else (vector,)

    def _fail(self, taken: list[_Job], code: int) -> tuple[Event, ...]:
        self._failures.add(code)
        failed = {job.request.id: job for job in taken}
        return tuple(self._finish(job, FinishReason.FAILED) for job in failed.values())

    def _finish(self, job: _Job, reason: FinishReason) -> Finish:
        del self._jobs[job.request.id]
        return Finish(
            request_id=job.request.id,
            reason=reason,
            prompt_tokens=sum(map(len, job.request.prompts)),
            cached_tokens=0,
            output_tokens=0,
        )

    def cancel(self, request_id: str) -> Finish | None:
        """Forget the request."""
        job = self._jobs.get(request_id)
        return None if job is None else self._finish(job, FinishReason.CANCELLED)

    def stats(self) -> EngineStats:
        """Count."""
        return EngineStats(
            slots=self._slots,
            busy_slots=len(self._jobs),
            kv_tokens=0,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=0,
            output_tokens=0,
            steps=self._steps,
        )

    def close(self) -> None:
        """Free context, threads and weights."""
        self._jobs.clear()
        self._context.close()
        self._model.close()

"""The engine's thread: takes requests from an inbox, runs forward passes, turns tokens into text.

Everything here except the methods marked "any thread" runs in the worker's own thread, which owns the engine. Neither
side waits for the other while it holds the lock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from edgeserve.answers import Embedding, End, Fault, FaultKind, Output, Text
from edgeserve.engine.protocol import (
    EmbeddingRequest,
    Engine,
    EngineError,
    EngineStats,
    Event,
    Finish,
    FinishReason,
    Request,
    Sampling,
    Vector,
)
from edgeserve.fair_queue import FairQueue
from edgeserve.log import Log, described
from edgeserve.transcript import Transcript

_WARM_UP: Final = "warm-up"
# Tokens that come within this time go to the event loop together: waking it for each would cost a small model, on a device
# whose cores all compute, several of a hundred tokens per second, and nobody reads that fast.
_TOGETHER_S: Final = 0.025


class Job:
    """A request and what the worker knows of it; `deliver` belongs to whoever handed it over.

    `client` is whose turn it takes; `first_token_at` is 0 until a token was generated, and may be read from any thread.
    """

    __slots__ = ("client", "deliver", "first_token_at", "request", "started_at", "submitted_at", "transcript")

    def __init__(
        self,
        request: Request | EmbeddingRequest,
        *,
        client: str,
        stops: Sequence[str],
        deliver: Callable[[Output], None],
    ) -> None:
        self.request = request
        self.client = client
        self.transcript = Transcript(stops)
        self.deliver = deliver
        self.submitted_at = time.monotonic()
        self.started_at = self.first_token_at = 0.0


Delivery = tuple[Job, Output]


class Listener(Protocol):
    """Who hears of the worker; called in the worker's thread, so it must hand the news over and return."""

    def on_open(self, engine: Engine) -> None:
        """The engine is loaded and has generated a token."""

    def on_outputs(self, deliveries: Sequence[Delivery]) -> None:
        """One forward pass is done."""

    def on_failure(self, message: str) -> None:
        """The engine does not load or is broken; the thread ends."""


class Worker:
    """One engine in one thread."""

    def __init__(
        self, make_engine: Callable[[], Engine], *, slots: int, log: Log, listener: Listener
    ) -> None:
        self._make_engine = make_engine
        self._slots = slots
        self._log = log
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Guarded by the condition.
        self._inbox = threading.Condition()
        self._arrived: deque[Job] = deque()
        self._cancelled: set[str] = set()
        self._is_aborting = self._is_closing = False
        # The thread's own.
        self._waiting: FairQueue[Job] = FairQueue()
        self._running: dict[str, Job] = {}
        self._held: list[Delivery] = []
        self._sent_at = 0.0
        # Replaced as a whole after every pass, so that any thread may read it.
        self.stats: EngineStats | None = None

    def start(self) -> None:
        """Start the thread, which loads the engine first."""
        self._thread.start()

    def hand_over(self, job: Job) -> None:
        """Give a request to the worker, from any thread."""
        with self._inbox:
            self._arrived.append(job)
            self._inbox.notify()

    def cancel(self, request_id: str) -> None:
        """Drop a request before the next forward pass, from any thread; nothing more is delivered for it."""
        with self._inbox:
            self._cancelled.add(request_id)
            self._inbox.notify()

    def abort(self) -> None:
        """End every request with a `Fault`, from any thread."""
        with self._inbox:
            self._is_aborting = True
            self._inbox.notify()

    def close(self, timeout_s: float) -> bool:
        """End the thread and free the engine, from any thread.

        Returns:
            Whether it ended in time; a forward pass cannot be interrupted.
        """
        with self._inbox:
            self._is_aborting = self._is_closing = True
            self._inbox.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        engine: Engine | None = None
        try:
            engine = self._make_engine()
            _warm_up(engine)
            self.stats = engine.stats()
            self._listener.on_open(engine)
            while self._turn(engine):
                pass
        except EngineError as error:
            self._give_up(str(error))
        except Exception as error:  # noqa: BLE001 - the thread's last resort: whoever waits must hear of it
            fields = described(error)
            self._log.error("engine-thread", **fields)
            self._give_up(f"unexpected {fields['exception']} at {fields['at']}")
        finally:
            if engine is not None:
                engine.close()

    def _turn(self, engine: Engine) -> bool:
        """Take what arrived, admit, run one pass, deliver; False when the thread shall end."""
        with self._inbox:
            while not (
                self._arrived or self._cancelled or self._is_aborting or self._running or self._waiting
            ):
                self._inbox.wait()
            for job in self._arrived:
                self._waiting.push(job, client=job.client)
            self._arrived.clear()
            cancelled, self._cancelled = self._cancelled, set()
            is_aborting, is_closing = self._is_aborting, self._is_closing
            self._is_aborting = False
        self._drop(engine, cancelled)
        if is_aborting:
            self._abort(engine)
        if is_closing:
            self.stats = engine.stats()
            self._send()
        else:
            self._admit(engine)
            self._pass(engine)
        return not is_closing

    def _pass(self, engine: Engine) -> None:
        """Run one pass; nothing waits for one that computes prompts, which takes long, nor does a first token after it."""
        computes_prompts = not all(job.first_token_at for job in self._running.values())
        if computes_prompts:
            self._send()
        for event in engine.step():
            self._take(engine, event)
        self.stats = engine.stats()
        if computes_prompts or self._is_due():
            self._send()

    def _is_due(self) -> bool:
        """Whether what is held must go: more than text, or text that came long enough after the last."""
        is_late = time.monotonic() - self._sent_at >= _TOGETHER_S
        return is_late or not all(isinstance(output, Text) for _, output in self._held)

    def _send(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._sent_at = time.monotonic()
            self._listener.on_outputs(held)

    def _drop(self, engine: Engine, cancelled: set[str]) -> None:
        if not cancelled:
            return
        self._waiting.remove(lambda job: job.request.id in cancelled)
        for request_id in cancelled:
            if self._running.pop(request_id, None) is not None:
                engine.cancel(request_id)

    def _abort(self, engine: Engine) -> None:
        for request_id in self._running:
            engine.cancel(request_id)
        fault = Fault(kind=FaultKind.SHUTTING_DOWN)
        self._held.extend((job, fault) for job in (*self._running.values(), *self._waiting))
        self._running.clear()
        self._waiting.clear()

    def _admit(self, engine: Engine) -> None:
        while self._waiting and len(self._running) < self._slots:
            job = self._waiting.pop()
            job.started_at = time.monotonic()
            try:
                engine.submit(job.request)
            except EngineError as error:
                self._log.error("submit", problem=str(error))
                self._held.append((job, Fault(kind=FaultKind.ENGINE)))
            else:
                self._running[job.request.id] = job

    def _take(self, engine: Engine, event: Event) -> None:
        job = self._running.get(event.request_id)
        if job is None:
            return
        if isinstance(event, Finish):
            rest = job.transcript.finish()
            if rest is not None:
                self._held.append((job, rest))
            self._end(job, event)
            return
        job.first_token_at = job.first_token_at or time.monotonic()
        if isinstance(event, Vector):
            self._held.append((job, Embedding(values=event.values)))
            return
        text = job.transcript.feed(event)
        if text is not None:
            self._held.append((job, text))
        if job.transcript.is_stopped:
            # None where this very token was the last one allowed: its `Finish` follows.
            finish = engine.cancel(event.request_id)
            if finish is not None:
                self._end(job, finish)

    def _end(self, job: Job, finish: Finish) -> None:
        del self._running[finish.request_id]
        if finish.reason is FinishReason.FAILED:
            self._held.append((job, Fault(kind=FaultKind.ENGINE)))
            return
        now, since = time.monotonic(), job.submitted_at
        end = End(
            reason=FinishReason.STOP if job.transcript.is_stopped else finish.reason,
            prompt_tokens=finish.prompt_tokens,
            cached_tokens=finish.cached_tokens,
            output_tokens=finish.output_tokens,
            queued_s=job.started_at - since,
            first_token_s=(job.first_token_at or now) - since,
            total_s=now - since,
        )
        self._held.append((job, end))

    def _give_up(self, message: str) -> None:
        with self._inbox:
            jobs = (*self._running.values(), *self._waiting, *self._arrived)
            self._arrived.clear()
        self._running.clear()
        self._waiting.clear()
        self._send()
        self._listener.on_failure(message)
        self._listener.on_outputs(tuple((job, Fault(kind=FaultKind.ENGINE)) for job in jobs))


def _warm_up(engine: Engine) -> None:
    """Generate one token, or embed the longest text, so that ready means that the whole path works.

    Raises:
        EngineError: It does not.
    """
    facts = engine.facts
    prompt = (facts.bos_token,) if facts.bos_token is not None else engine.tokenize("a", special=False)
    if facts.vector_length:
        # Memory for a pass is taken with the first one of its length; what is too little shall show now.
        engine.submit(EmbeddingRequest(id=_WARM_UP, prompts=(prompt[:1] * facts.context_tokens,)))
    else:
        sampling = Sampling(temperature=0.0)
        engine.submit(Request(id=_WARM_UP, prompt=prompt, output_tokens=1, sampling=sampling))
    while True:
        for event in engine.step():
            if isinstance(event, Finish):
                if event.reason is FinishReason.FAILED:
                    raise EngineError("the first forward pass failed")
                return

"""Admission and delivery on the event loop: a bounded queue, answers as asynchronous iterators, deadlines."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Final

from edgeserve.answers import End, Fault, FaultKind, Output, Text
from edgeserve.bell import Bell
from edgeserve.deadlines import Deadlines
from edgeserve.engine.protocol import EmbeddingRequest, Engine, EngineStats, ModelFacts, Request
from edgeserve.log import Log
from edgeserve.worker import Delivery, Job, Worker

_LONGEST_RETRY_S: Final = 60
_WEIGHT_OF_NEWEST: Final = 0.2
_SHORT_CHARACTERS: Final = 64


class State(StrEnum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    AUDIT_FAILED = "audit_failed"
    STOPPING = "stopping"
    FAILED = "failed"


class QueueFullError(Exception):
    """No place is left; `retry_after_s` is when one may be."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"queue full, retry after {retry_after_s} s")
        self.retry_after_s = retry_after_s


class ClientLimitError(Exception):
    """A client has as many requests under way as one may have; `retry_after_s` is when one may be over."""

    def __init__(self, most: int, retry_after_s: int) -> None:
        super().__init__(f"{most} requests under way, retry after {retry_after_s} s")
        self.most = most
        self.retry_after_s = retry_after_s


class NotServingError(Exception):
    """The engine is still loading, has failed, or the server is stopping."""

    def __init__(self, state: State) -> None:
        super().__init__(state.value)
        self.state = state


class Place:
    """A place in the queue, held from before the prompt is prepared until the engine is done with the request."""

    __slots__ = ("_free", "_is_held", "client")

    def __init__(self, client: str, free: Callable[[], None]) -> None:
        self.client = client
        self._free = free
        self._is_held = True

    def release(self) -> None:
        """Give the place back; a second time does nothing."""
        if self._is_held:
            self._is_held = False
            self._free()


class _Mailbox:
    """The outputs of one request that nobody has taken yet: at most its output tokens, so no reader holds up the engine.

    Deadlines are timers of the event loop, one each: an `asyncio.timeout` for every token costs more than the token's JSON.
    """

    __slots__ = ("_loop", "_outputs", "_timers", "_waiter", "is_over")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outputs: deque[Output] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self.is_over = False

    def put(self, output: Output) -> None:
        """Take an output of the engine."""
        self.is_over = self.is_over or isinstance(output, (End, Fault))
        self._add(output)

    def expire_at(self, deadline: float, kind: FaultKind, still: Callable[[], bool] = lambda: True) -> None:
        """End with a fault at an event loop time, if that still holds then."""
        self._timers.append(self._loop.call_at(deadline, self._expire, kind, still))

    async def take(self) -> Output:
        """Wait for the next output; short texts that have come meanwhile are one."""
        if not self._outputs:
            self._waiter = self._loop.create_future()
            await self._waiter
        output = self._outputs.popleft()
        while isinstance(output, Text) and self._outputs and len(output.text) < _SHORT_CHARACTERS:
            more = self._outputs[0]
            if not isinstance(more, Text):
                break
            output = Text(text=output.text + more.text, logprobs=output.logprobs + more.logprobs)
            self._outputs.popleft()
        return output

    def close(self) -> None:
        """Forget the deadlines."""
        for timer in self._timers:
            timer.cancel()

    def _expire(self, kind: FaultKind, still: Callable[[], bool]) -> None:
        if still():
            self._add(Fault(kind=kind))

    def _add(self, output: Output) -> None:
        self._outputs.append(output)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Scheduler:
    """Runs one engine for any number of clients; all methods but the `Listener`'s are for the event loop.

    At most `slots` + `queue` requests are under way, and `client_requests` of one client unless that is 0. Where all
    places are taken, a client with fewer than another gets the one of the other's newest request that still waits, so
    that nobody can keep the others out. `on_change` is called on the event loop whenever `state` changes.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        slots: int,
        queue: int,
        client_requests: int = 0,
        log: Log,
        on_change: Callable[[], None],
    ) -> None:
        self._slots, self._places = slots, slots + queue
        self._taken = 0
        self._most_of_client = client_requests or self._places + 1  # which nobody reaches
        self._taken_by: Counter[str] = Counter()
        # In the order of their arrival, with those that have begun.
        self._handed_over: dict[Place, tuple[Job, _Mailbox]] = {}
        self._service_s = 1.0
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._bell = Bell(self._loop)
        self._worker = Worker(make_engine, slots=slots, log=log, listener=self)
        self._engine: Engine | None = None
        self._is_aborted = False
        self._state = State.LOADING
        self._is_held = False
        self.failure = ""

    def start(self) -> None:
        """Load the engine in its own thread; `state` becomes READY after a first token, or FAILED."""
        self._worker.start()

    @property
    def state(self) -> State:
        """Where the server is in its life."""
        return State.AUDIT_FAILED if self._is_held and self._state is State.READY else self._state

    @property
    def engine(self) -> Engine:
        """The loaded engine, for `facts` and `tokenize` only.

        Raises:
            NotServingError: It is not loaded.
        """
        if self._engine is None:
            raise NotServingError(self.state)
        return self._engine

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        return self.engine.facts

    @property
    def stats(self) -> EngineStats | None:
        """What the engine counted up to its last forward pass, None before the first; from any thread."""
        return self._worker.stats

    @property
    def queued(self) -> int:
        """Requests beyond those that the slots can take."""
        return max(0, self._taken - self._slots)

    @property
    def most_of_one(self) -> int:
        """Places that one request can ever get."""
        return min(self._places, self._most_of_client)

    def reserve(self, client: str, count: int = 1) -> Place:
        """Take a place in the queue, or several at once.

        Args:
            client: Under which name the request is counted (`Client.account`).
            count: Answers that the request shall generate, each of which counts as a request; at most `most_of_one`.

        Raises:
            ClientLimitError: This client has as many as one may have.
            QueueFullError: All are taken, and nobody has to make room for this client.
            NotServingError: Requests are not served now.
        """
        if self.state is not State.READY:
            raise NotServingError(self.state)
        if self._taken_by[client] + count > self._most_of_client:
            raise ClientLimitError(self._most_of_client, self._retry_after_s(1))
        # Several places are not worth several others' requests.
        if self._taken + count > self._places and not (count == 1 and self._crowd_out(client)):
            raise QueueFullError(self._retry_when_full_s())
        self._taken += count
        self._taken_by[client] += count
        return Place(client, partial(self._free_places, client, count))

    def _crowd_out(self, client: str) -> bool:
        """End the newest request that waits of the client that has most, if that one has at least two more.

        Returns:
            Whether a place became free.
        """
        waiting = [
            (self._taken_by[place.client], arrival, place)
            for arrival, (place, (job, _)) in enumerate(self._handed_over.items())
            if not job.started_at
        ]
        most, _, place = max(waiting, default=(0, 0, None))
        if place is None or most - self._taken_by[client] < 2:
            return False
        job, box = self._handed_over.pop(place)
        # It may begin at this very moment; its client has heard nothing of it all the same.
        self._worker.cancel(job.request.id)
        box.put(Fault(kind=FaultKind.CROWDED_OUT, retry_after_s=self._retry_when_full_s()))
        place.release()
        return True

    def _retry_when_full_s(self) -> int:
        return self._retry_after_s((self.queued + 1) / self._slots)

    def _free_places(self, client: str, count: int) -> None:
        self._taken -= count
        self._taken_by[client] -= count
        if not self._taken_by[client]:
            del self._taken_by[client]

    def _retry_after_s(self, rounds: float) -> int:
        """Estimate how long it takes until every slot has served `rounds` requests."""
        return min(_LONGEST_RETRY_S, max(1, math.ceil(rounds * self._service_s)))

    async def generate(
        self,
        request: Request | EmbeddingRequest,
        *,
        client: str,
        stops: Sequence[str],
        deadlines: Deadlines,
        place: Place | None = None,
    ) -> AsyncGenerator[Output, None]:
        """Hand a request over and yield its answer as it grows; the last output is an `End` or a `Fault`.

        Closing the iterator early cancels the request, which frees its slot before the next forward pass.

        Args:
            request: A request that fits the context, with an id of its own; its client holds a `Place`.
            client: Whose turn it takes among those that wait.
            stops: Texts that end the answer and are not part of it.
            deadlines: Event loop times after which the answer is a `Fault`.
            place: The place that its client may lose to others as long as the request waits; None for one that it keeps.
        """
        if self._is_aborted or self.state is State.FAILED:
            yield Fault(kind=FaultKind.SHUTTING_DOWN)
            return
        box = _Mailbox(self._loop)
        job = Job(request, client=client, stops=stops, deliver=box.put)
        box.expire_at(deadlines.end, FaultKind.DEADLINE)
        if deadlines.first_token < deadlines.end:
            # A token whose text is still held back counts as the first one.
            box.expire_at(deadlines.first_token, FaultKind.FIRST_TOKEN, lambda: not job.first_token_at)
        self._worker.hand_over(job)
        if place is not None:
            self._handed_over[place] = job, box
        try:
            while not isinstance(output := await box.take(), (End, Fault)):
                yield output
            self._learn(output)
            yield output
        finally:
            box.close()
            if place is not None:
                self._handed_over.pop(place, None)
            if not box.is_over:
                self._worker.cancel(request.id)

    def _learn(self, output: End | Fault) -> None:
        """Remember how long requests take, to tell those who find the queue full when to come back."""
        if isinstance(output, End):
            self._service_s += _WEIGHT_OF_NEWEST * (output.total_s - output.queued_s - self._service_s)

    def hold(self, is_held: bool) -> None:  # noqa: FBT001 - one word says it all
        """Refuse new requests, or take them again: the audit log that must be written cannot be, or can."""
        self._is_held = is_held

    def stop_admitting(self) -> None:
        """Refuse new requests from now on; those admitted go on."""
        if self.state is not State.FAILED:
            self._become(State.STOPPING)

    def abort(self) -> None:
        """End every request with a `Fault`, also those that are handed over later."""
        self._is_aborted = True
        self._worker.abort()

    def close(self, timeout_s: float) -> bool:
        """End the engine's thread and free the engine; may be called from any thread.

        Returns:
            Whether it ended in time.
        """
        is_over = self._worker.close(timeout_s)
        self._bell.close()
        return is_over

    def on_open(self, engine: Engine) -> None:
        """See `Listener`."""
        self._bell.ring(partial(self._open, engine))

    def on_outputs(self, deliveries: Sequence[Delivery]) -> None:
        """See `Listener`."""
        self._bell.ring(partial(_deliver, deliveries))

    def on_failure(self, message: str) -> None:
        """See `Listener`."""
        self._bell.ring(partial(self._fail, message))

    def _open(self, engine: Engine) -> None:
        self._engine = engine
        if self._state is State.LOADING:
            self._become(State.READY)

    def _fail(self, message: str) -> None:
        self.failure = message
        self._become(State.FAILED)

    def _become(self, state: State) -> None:
        self._state = state
        self._on_change()


def _deliver(deliveries: Sequence[Delivery]) -> None:
    for job, output in deliveries:
        job.deliver(output)

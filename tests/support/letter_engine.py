"""An engine that says the alphabet, and a scheduler around it, for tests."""

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

from edgeserve.answers import Output, Text
from edgeserve.deadlines import Deadlines
from edgeserve.engine.protocol import (
    EmbeddingRequest,
    EngineError,
    EngineStats,
    Event,
    Finish,
    FinishReason,
    ModelFacts,
    Request,
    Sampling,
    Token,
)
from edgeserve.log import Log
from edgeserve.scheduler import (
    Scheduler,
    State,
)

FACTS = ModelFacts(
    description="letters",
    cpu_variant="none",
    context_tokens=1000,
    trained_context_tokens=1000,
    slots=2,
    threads=1,
    vocabulary_tokens=256,
    chat_template=None,
    bos_text="",
    eos_text="",
    bos_token=None,
    add_bos=False,
    control_texts=(),
)


class LetterEngine:
    """Says the letters of the alphabet, one per step and request; a step waits for `gate`."""

    def __init__(self, slots: int = 2) -> None:
        self.facts = dataclasses.replace(FACTS, slots=slots)
        self.gate = threading.Event()
        self.gate.set()
        self.is_broken = False
        self.is_closed = False
        self.running: dict[str, int] = {}
        self.prompts: list[str] = []
        self._requests: dict[str, Request] = {}

    def submit(self, request: Request | EmbeddingRequest) -> None:
        assert isinstance(request, Request)
        if len(self.running) == self.facts.slots:
            raise EngineError("no slot is free")
        if request.prompt == (0,):
            raise EngineError("refused")
        self.running[request.id] = 0
        self._requests[request.id] = request
        self.prompts.append(request.id)

    def step(self) -> tuple[Event, ...]:
        self.gate.wait(10)
        if self.is_broken:
            raise EngineError("broken for good")
        events: list[Event] = []
        for name in list(self.running):
            piece = bytes([ord("a") + self.running[name] % 26])
            self.running[name] += 1
            events.append(Token(request_id=name, token=piece[0], piece=piece))
            if self.running[name] == self._requests[name].output_tokens:
                events.append(self._finish(name, FinishReason.LENGTH))
        return tuple(events)

    def _finish(self, name: str, reason: FinishReason) -> Finish:
        count = self.running.pop(name)
        return Finish(request_id=name, reason=reason, prompt_tokens=1, cached_tokens=0, output_tokens=count)

    def cancel(self, request_id: str) -> Finish | None:
        return self._finish(request_id, FinishReason.CANCELLED) if request_id in self.running else None

    def stats(self) -> EngineStats:
        return EngineStats(
            slots=self.facts.slots,
            busy_slots=len(self.running),
            kv_tokens=sum(self.running.values()),
            prompt_tokens=len(self.prompts),
            cached_tokens=0,
            output_tokens=0,
            steps=0,
        )

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        assert not special
        return tuple(text.encode())

    def close(self) -> None:
        self.is_closed = True


@asynccontextmanager
async def running(
    engine: LetterEngine, *, queue: int = 2, client_requests: int = 0
) -> AsyncIterator[Scheduler]:
    changed = asyncio.Event()
    scheduler = Scheduler(
        lambda: engine,
        slots=engine.facts.slots,
        queue=queue,
        client_requests=client_requests,
        log=Log(),
        on_change=changed.set,
    )
    states = [scheduler.state]
    scheduler.start()
    await changed.wait()
    states.append(scheduler.state)
    assert states == [State.LOADING, State.READY]
    try:
        yield scheduler
    finally:
        engine.gate.set()
        assert await asyncio.to_thread(scheduler.close, 10)
        assert engine.is_closed


def make_request(name: str, output_tokens: int = 5, prompt: int = 1) -> Request:
    return Request(id=name, prompt=(prompt,), output_tokens=output_tokens, sampling=Sampling())


def make_deadlines(seconds: float = 10, first_token_s: float = 10) -> Deadlines:
    now = asyncio.get_running_loop().time()
    return Deadlines(first_token=now + min(first_token_s, seconds), end=now + seconds)


async def answer_of(
    scheduler: Scheduler,
    name: str,
    *,
    client: str = "one",
    output_tokens: int = 5,
    seconds: float = 10,
    first_token_s: float = 10,
    stops: tuple[str, ...] = (),
    prompt: int = 1,
) -> tuple[str, Output]:
    place = scheduler.reserve(client)
    text = ""
    outputs = scheduler.generate(
        make_request(name, output_tokens, prompt),
        client=client,
        stops=stops,
        deadlines=make_deadlines(seconds, first_token_s),
        place=place,
    )
    try:
        async with aclosing(outputs):
            async for output in outputs:
                if not isinstance(output, Text):
                    return text, output
                text += output.text
    finally:
        place.release()
    raise AssertionError("an answer ended without an end")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0.005)


def run(test: Callable[[LetterEngine], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test(LetterEngine())

    asyncio.run(bounded())

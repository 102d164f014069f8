"""The scheduler over an engine of a few lines that says what it is told to and can be held up or broken."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from edgeserve.answers import End, Fault, FaultKind, Output, Text
from edgeserve.engine.protocol import (
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
from edgeserve.scheduler import NotServingError, QueueFullError, Scheduler, State

_FACTS = ModelFacts(
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

    def __init__(self) -> None:
        self.facts = _FACTS
        self.gate = threading.Event()
        self.gate.set()
        self.is_broken = False
        self.is_closed = False
        self.running: dict[str, int] = {}
        self.prompts: list[str] = []
        self._requests: dict[str, Request] = {}

    def submit(self, request: Request) -> None:
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
        raise NotImplementedError

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        assert not special
        return tuple(text.encode())

    def close(self) -> None:
        self.is_closed = True


@asynccontextmanager
async def _running(engine: LetterEngine, *, queue: int = 2) -> AsyncIterator[Scheduler]:
    changed = asyncio.Event()
    scheduler = Scheduler(lambda: engine, slots=2, queue=queue, log=Log(), on_change=changed.set)
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


def _request(name: str, output_tokens: int = 5, prompt: int = 1) -> Request:
    return Request(id=name, prompt=(prompt,), output_tokens=output_tokens, sampling=Sampling())


async def _answer(
    scheduler: Scheduler,
    name: str,
    *,
    output_tokens: int = 5,
    seconds: float = 10,
    stops: tuple[str, ...] = (),
    prompt: int = 1,
) -> tuple[str, Output]:
    place = scheduler.reserve()
    deadline = asyncio.get_running_loop().time() + seconds
    text = ""
    outputs = scheduler.generate(
        _request(name, output_tokens, prompt), stops=stops, place=place, deadline=deadline
    )
    async with aclosing(outputs):
        async for output in outputs:
            if not isinstance(output, Text):
                return text, output
            text += output.text
    raise AssertionError("an answer ended without an end")


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0.005)


def _run(test: Callable[[LetterEngine], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test(LetterEngine())

    asyncio.run(bounded())


def test_answers() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            text, end = await _answer(scheduler, "x")
            assert text == "abcde"
            assert isinstance(end, End)
            assert (end.reason, end.output_tokens) == (FinishReason.LENGTH, 5)
            assert 0 <= end.queued_s <= end.first_token_s <= end.total_s

    _run(test)


def test_more_requests_than_slots_are_served_in_order() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine, queue=10) as scheduler:
            answers = await asyncio.gather(*(_answer(scheduler, str(number)) for number in range(12)))
            assert {text for text, _ in answers} == {"abcde"}
            assert engine.prompts[1:] == [str(number) for number in range(12)]

    _run(test)


def test_a_stop_string_ends_the_engines_work() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            text, end = await _answer(scheduler, "x", output_tokens=900, stops=("def",))
            assert isinstance(end, End)
            assert (text, end.reason, end.output_tokens) == ("abc", FinishReason.STOP, 6)
            assert engine.running == {}

    _run(test)


def test_a_stop_string_completed_by_the_last_token() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            text, end = await _answer(scheduler, "x", output_tokens=5, stops=("de",))
            assert isinstance(end, End)
            assert (text, end.reason) == ("abc", FinishReason.STOP)

    _run(test)


def test_the_queue_is_bounded_and_places_come_back() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine, queue=1) as scheduler:
            places = [scheduler.reserve() for _ in range(3)]
            with pytest.raises(QueueFullError) as caught:
                scheduler.reserve()
            assert 1 <= caught.value.retry_after_s <= 60
            places[0].release()
            places[0].release()
            scheduler.reserve()
            with pytest.raises(QueueFullError):
                scheduler.reserve()

    _run(test)


def test_closing_an_answer_frees_its_slot_before_the_next_step() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            engine.gate.clear()
            deadline = asyncio.get_running_loop().time() + 10
            outputs = scheduler.generate(
                _request("x", 900), stops=(), place=scheduler.reserve(), deadline=deadline
            )
            waiting = asyncio.ensure_future(anext(outputs))
            await _until(lambda: "x" in engine.running)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await outputs.aclose()
            engine.gate.set()
            await _until(lambda: not engine.running)

    _run(test)


def test_a_waiting_request_can_be_cancelled() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            busy = [
                asyncio.ensure_future(_answer(scheduler, f"busy{n}", output_tokens=10**9)) for n in range(2)
            ]
            await _until(lambda: len(engine.running) == 2)
            waiting = asyncio.ensure_future(_answer(scheduler, "waiting"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            for one in busy:
                one.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
            await _until(lambda: not engine.running)
            assert "waiting" not in engine.prompts
            assert scheduler.queued == 0

    _run(test)


def test_the_deadline_also_holds_while_waiting() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            engine.gate.clear()
            answers = await asyncio.gather(*(_answer(scheduler, str(n), seconds=0.05) for n in range(4)))
            assert [end for _, end in answers] == [Fault(kind=FaultKind.DEADLINE)] * 4
            engine.gate.set()
            await _until(lambda: not engine.running)
            assert (await _answer(scheduler, "after"))[0] == "abcde"

    _run(test)


def test_abort_ends_all_and_all_that_follow() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            tasks = [asyncio.ensure_future(_answer(scheduler, str(n), output_tokens=10**9)) for n in range(3)]
            late = scheduler.reserve()
            await _until(lambda: len(engine.running) == 2)
            scheduler.stop_admitting()
            with pytest.raises(NotServingError):
                scheduler.reserve()
            scheduler.abort()
            ends = [end for _, end in await asyncio.gather(*tasks)]
            assert ends == [Fault(kind=FaultKind.SHUTTING_DOWN)] * 3
            outputs = scheduler.generate(_request("late"), stops=(), place=late, deadline=0)
            assert [output async for output in outputs] == [Fault(kind=FaultKind.SHUTTING_DOWN)]

    _run(test)


def test_what_the_engine_refuses_is_a_fault_of_that_request_only() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            assert (await _answer(scheduler, "bad", prompt=0))[1] == Fault(kind=FaultKind.ENGINE)
            assert (await _answer(scheduler, "good"))[0] == "abcde"

    _run(test)


def test_a_broken_engine_ends_everything() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            engine.gate.clear()
            tasks = [asyncio.ensure_future(_answer(scheduler, str(n))) for n in range(4)]
            await _until(lambda: len(engine.running) == 2)
            engine.is_broken = True
            engine.gate.set()
            ends = [end for _, end in await asyncio.gather(*tasks)]
            assert ends == [Fault(kind=FaultKind.ENGINE)] * 4
            assert (scheduler.state, scheduler.failure) == (State.FAILED, "broken for good")
            with pytest.raises(NotServingError):
                scheduler.reserve()

    _run(test)


def test_an_engine_that_does_not_load() -> None:
    async def test() -> None:
        def make() -> LetterEngine:
            raise EngineError("no such model")

        changed = asyncio.Event()
        scheduler = Scheduler(make, slots=1, queue=0, log=Log(), on_change=changed.set)
        scheduler.start()
        await changed.wait()
        assert (scheduler.state, scheduler.failure) == (State.FAILED, "no such model")
        with pytest.raises(NotServingError):
            _ = scheduler.engine
        assert scheduler.close(10)

    asyncio.run(test())

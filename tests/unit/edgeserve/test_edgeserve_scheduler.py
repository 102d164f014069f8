"""The scheduler over an engine of a few lines that says what it is told to and can be held up or broken."""

import asyncio
import dataclasses
import string
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from edgeserve.answers import End, Fault, FaultKind, Output, Text
from edgeserve.deadlines import Deadlines
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
from edgeserve.scheduler import (
    ClientLimitError,
    NotServingError,
    QueueFullError,
    Scheduler,
    State,
)

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

    def __init__(self, slots: int = 2) -> None:
        self.facts = dataclasses.replace(_FACTS, slots=slots)
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
async def _running(
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


def _request(name: str, output_tokens: int = 5, prompt: int = 1) -> Request:
    return Request(id=name, prompt=(prompt,), output_tokens=output_tokens, sampling=Sampling())


def _deadlines(seconds: float = 10, first_token_s: float = 10) -> Deadlines:
    now = asyncio.get_running_loop().time()
    return Deadlines(first_token=now + min(first_token_s, seconds), end=now + seconds)


async def _answer(
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
        _request(name, output_tokens, prompt),
        client=client,
        stops=stops,
        deadlines=_deadlines(seconds, first_token_s),
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


def _letters(scheduler: Scheduler, count: int) -> AsyncGenerator[Output, None]:
    return scheduler.generate(
        _request("x", count),
        client="one",
        stops=(),
        deadlines=_deadlines(10, 10),
        place=scheduler.reserve("one"),
    )


def test_tokens_that_come_quickly_share_a_part() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            parts = [output.text async for output in _letters(scheduler, 520) if isinstance(output, Text)]
            assert "".join(parts) == string.ascii_lowercase * 20
            assert len(parts) < 260

    _run(test)


def test_tokens_that_come_slowly_come_alone() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            engine.gate.clear()
            async with aclosing(_letters(scheduler, 5)) as outputs:
                for letter in "abcd":
                    part = asyncio.ensure_future(anext(outputs))
                    await asyncio.sleep(0.05)
                    engine.gate.set()  # one step
                    engine.gate.clear()
                    assert await part == Text(text=letter)

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
            places = [scheduler.reserve("one") for _ in range(3)]
            with pytest.raises(QueueFullError) as caught:
                scheduler.reserve("other")
            assert 1 <= caught.value.retry_after_s <= 60
            places[0].release()
            places[0].release()
            scheduler.reserve("other")
            with pytest.raises(QueueFullError):
                scheduler.reserve("one")

    _run(test)


def test_a_client_has_a_limit_of_its_own() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine, queue=8, client_requests=2) as scheduler:
            first, _ = scheduler.reserve("one"), scheduler.reserve("one")
            with pytest.raises(ClientLimitError) as caught:
                scheduler.reserve("one")
            assert caught.value.most == 2
            assert 1 <= caught.value.retry_after_s <= 60
            scheduler.reserve("other")
            first.release()
            first.release()
            scheduler.reserve("one")
            with pytest.raises(ClientLimitError):
                scheduler.reserve("one")

    _run(test)


def test_nobody_keeps_the_others_out_of_a_full_queue() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine, queue=3) as scheduler:
            engine.gate.clear()
            many = [asyncio.ensure_future(_answer(scheduler, f"a{n}", client="a")) for n in range(5)]
            await _until(lambda: len(engine.running) == 2)
            with pytest.raises(QueueFullError):
                scheduler.reserve("a")
            # "a" has five places: it loses one to each of the others, and one more to "b", which then has as many.
            few = [
                asyncio.ensure_future(_answer(scheduler, name, client=name[0])) for name in ("b0", "c0", "b1")
            ]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                scheduler.reserve("b")
            with pytest.raises(QueueFullError):
                scheduler.reserve("c")
            # Those of "a" have begun, so that a newcomer gets one of "b".
            few.append(asyncio.ensure_future(_answer(scheduler, "d0", client="d")))
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                scheduler.reserve("e")
            engine.gate.set()
            ends = [end for _, end in await asyncio.gather(*many)]
            assert [isinstance(end, End) for end in ends] == [True, True, False, False, False]
            answers = await asyncio.gather(*few)
            assert [text for text, _ in answers] == ["abcde", "abcde", "", "abcde"]
            for end in (*ends[2:], answers[2][1]):
                assert isinstance(end, Fault)
                assert end.kind is FaultKind.CROWDED_OUT
                assert 1 <= end.retry_after_s <= 60
            assert not {"a2", "a3", "a4", "b1"} & set(engine.prompts)
            assert scheduler.queued == 0

    _run(test)


def test_clients_that_wait_are_served_in_turn() -> None:
    async def test(_engine: LetterEngine) -> None:
        engine = LetterEngine(slots=1)
        async with _running(engine, queue=20) as scheduler:
            engine.gate.clear()
            tasks = [asyncio.ensure_future(_answer(scheduler, f"a{n}", client="a")) for n in range(8)]
            await _until(lambda: "a0" in engine.running)
            tasks += [asyncio.ensure_future(_answer(scheduler, f"b{n}", client="b")) for n in range(2)]
            tasks += [asyncio.ensure_future(_answer(scheduler, "c0", client="c"))]
            await asyncio.sleep(0)
            engine.gate.set()
            assert {text for text, _ in await asyncio.gather(*tasks)} == {"abcde"}
            order = ["b0", "c0", "a1", "b1", "a2", "a3", "a4", "a5", "a6", "a7"]
            assert engine.prompts[-len(order) :] == order

    _run(test)


def test_the_first_token_has_a_deadline_of_its_own() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine, queue=4) as scheduler:
            engine.gate.clear()
            ends = await asyncio.gather(*(_answer(scheduler, str(n), first_token_s=0.05) for n in range(4)))
            assert [end for _, end in ends] == [Fault(kind=FaultKind.FIRST_TOKEN)] * 4
            engine.gate.set()
            await _until(lambda: not engine.running)

    _run(test)


def test_a_token_whose_text_is_held_back_is_a_first_token() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            engine.gate.clear()
            task = asyncio.ensure_future(
                _answer(scheduler, "x", output_tokens=3, first_token_s=1, stops=("abcd",))
            )
            await _until(lambda: "x" in engine.running)
            engine.gate.set()
            engine.gate.clear()  # one step; its letter may become the stop string
            await _until(lambda: engine.running["x"] == 1)
            await asyncio.sleep(1.2)
            engine.gate.set()
            text, end = await task
            assert text == "abc"
            assert isinstance(end, End)

    _run(test)


def test_closing_an_answer_frees_its_slot_before_the_next_step() -> None:
    async def test(engine: LetterEngine) -> None:
        async with _running(engine) as scheduler:
            engine.gate.clear()
            outputs = scheduler.generate(_request("x", 900), client="one", stops=(), deadlines=_deadlines())
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
            await _until(lambda: len(engine.running) == 2)
            scheduler.stop_admitting()
            with pytest.raises(NotServingError):
                scheduler.reserve("one")
            scheduler.abort()
            ends = [end for _, end in await asyncio.gather(*tasks)]
            assert ends == [Fault(kind=FaultKind.SHUTTING_DOWN)] * 3
            outputs = scheduler.generate(
                _request("late"), client="one", stops=(), deadlines=Deadlines(first_token=0, end=0)
            )
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
                scheduler.reserve("one")

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

"""The scheduler over an engine of a few lines that says what it is told to and can be held up or broken."""

import asyncio
import string
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from edgeserve.answers import End, Fault, FaultKind, Output, Text
from edgeserve.deadlines import Deadlines
from edgeserve.engine.protocol import (
    EngineError,
    FinishReason,
)
from edgeserve.log import Log
from edgeserve.scheduler import (
    ClientLimitError,
    NotServingError,
    QueueFullError,
    Scheduler,
    State,
)
from tests.support.letter_engine import (
    LetterEngine,
    answer_of,
    make_deadlines,
    make_request,
    run,
    running,
    until,
)


def test_answers() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            text, end = await answer_of(scheduler, "x")
            assert text == "abcde"
            assert isinstance(end, End)
            assert (end.reason, end.output_tokens) == (FinishReason.LENGTH, 5)
            assert 0 <= end.queued_s <= end.first_token_s <= end.total_s

    run(test)


def _letters(scheduler: Scheduler, count: int) -> AsyncGenerator[Output, None]:
    return scheduler.generate(
        make_request("x", count),
        client="one",
        stops=(),
        deadlines=make_deadlines(10, 10),
        place=scheduler.reserve("one"),
    )


def test_tokens_that_come_quickly_share_a_part() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            parts = [output.text async for output in _letters(scheduler, 520) if isinstance(output, Text)]
            assert "".join(parts) == string.ascii_lowercase * 20
            assert len(parts) < 260

    run(test)


def test_tokens_that_come_slowly_come_alone() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            engine.gate.clear()
            async with aclosing(_letters(scheduler, 5)) as outputs:
                for letter in "abcd":
                    part = asyncio.ensure_future(anext(outputs))
                    await asyncio.sleep(0.05)
                    engine.gate.set()  # one step
                    engine.gate.clear()
                    assert await part == Text(text=letter)

    run(test)


def test_more_requests_than_slots_are_served_in_order() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine, queue=10) as scheduler:
            answers = await asyncio.gather(*(answer_of(scheduler, str(number)) for number in range(12)))
            assert {text for text, _ in answers} == {"abcde"}
            assert engine.prompts[1:] == [str(number) for number in range(12)]

    run(test)


def test_a_stop_string_ends_the_engines_work() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            text, end = await answer_of(scheduler, "x", output_tokens=900, stops=("def",))
            assert isinstance(end, End)
            assert (text, end.reason, end.output_tokens) == ("abc", FinishReason.STOP, 6)
            assert engine.running == {}

    run(test)


def test_a_stop_string_completed_by_the_last_token() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            text, end = await answer_of(scheduler, "x", output_tokens=5, stops=("de",))
            assert isinstance(end, End)
            assert (text, end.reason) == ("abc", FinishReason.STOP)

    run(test)


def test_the_queue_is_bounded_and_places_come_back() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine, queue=1) as scheduler:
            places = [scheduler.reserve("one") for _ in range(3)]
            with pytest.raises(QueueFullError) as caught:
                scheduler.reserve("other")
            assert 1 <= caught.value.retry_after_s <= 60
            places[0].release()
            places[0].release()
            scheduler.reserve("other")
            with pytest.raises(QueueFullError):
                scheduler.reserve("one")

    run(test)


def test_a_client_has_a_limit_of_its_own() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine, queue=8, client_requests=2) as scheduler:
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

    run(test)


def test_nobody_keeps_the_others_out_of_a_full_queue() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine, queue=3) as scheduler:
            engine.gate.clear()
            many = [asyncio.ensure_future(answer_of(scheduler, f"a{n}", client="a")) for n in range(5)]
            await until(lambda: len(engine.running) == 2)
            with pytest.raises(QueueFullError):
                scheduler.reserve("a")
            # "a" has five places: it loses one to each of the others, and one more to "b", which then has as many.
            few = [
                asyncio.ensure_future(answer_of(scheduler, name, client=name[0]))
                for name in ("b0", "c0", "b1")
            ]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                scheduler.reserve("b")
            with pytest.raises(QueueFullError):
                scheduler.reserve("c")
            # Those of "a" have begun, so that a newcomer gets one of "b".
            few.append(asyncio.ensure_future(answer_of(scheduler, "d0", client="d")))
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

    run(test)


def test_clients_that_wait_are_served_in_turn() -> None:
    async def test(_engine: LetterEngine) -> None:
        engine = LetterEngine(slots=1)
        async with running(engine, queue=20) as scheduler:
            engine.gate.clear()
            tasks = [asyncio.ensure_future(answer_of(scheduler, f"a{n}", client="a")) for n in range(8)]
            await until(lambda: "a0" in engine.running)
            tasks += [asyncio.ensure_future(answer_of(scheduler, f"b{n}", client="b")) for n in range(2)]
            tasks += [asyncio.ensure_future(answer_of(scheduler, "c0", client="c"))]
            await asyncio.sleep(0)
            engine.gate.set()
            assert {text for text, _ in await asyncio.gather(*tasks)} == {"abcde"}
            order = ["b0", "c0", "a1", "b1", "a2", "a3", "a4", "a5", "a6", "a7"]
            assert engine.prompts[-len(order) :] == order

    run(test)


def test_the_first_token_has_a_deadline_of_its_own() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine, queue=4) as scheduler:
            engine.gate.clear()
            ends = await asyncio.gather(*(answer_of(scheduler, str(n), first_token_s=0.05) for n in range(4)))
            assert [end for _, end in ends] == [Fault(kind=FaultKind.FIRST_TOKEN)] * 4
            engine.gate.set()
            await until(lambda: not engine.running)

    run(test)


def test_a_token_whose_text_is_held_back_is_a_first_token() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            engine.gate.clear()
            task = asyncio.ensure_future(
                answer_of(scheduler, "x", output_tokens=3, first_token_s=1, stops=("abcd",))
            )
            await until(lambda: "x" in engine.running)
            engine.gate.set()
            engine.gate.clear()  # one step; its letter may become the stop string
            await until(lambda: engine.running["x"] == 1)
            await asyncio.sleep(1.2)
            engine.gate.set()
            text, end = await task
            assert text == "abc"
            assert isinstance(end, End)

    run(test)


def test_closing_an_answer_frees_its_slot_before_the_next_step() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            engine.gate.clear()
            outputs = scheduler.generate(
                make_request("x", 900), client="one", stops=(), deadlines=make_deadlines()
            )
            waiting = asyncio.ensure_future(anext(outputs))
            await until(lambda: "x" in engine.running)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await outputs.aclose()
            engine.gate.set()
            await until(lambda: not engine.running)

    run(test)


def test_a_waiting_request_can_be_cancelled() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            busy = [
                asyncio.ensure_future(answer_of(scheduler, f"busy{n}", output_tokens=10**9)) for n in range(2)
            ]
            await until(lambda: len(engine.running) == 2)
            waiting = asyncio.ensure_future(answer_of(scheduler, "waiting"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            for one in busy:
                one.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
            await until(lambda: not engine.running)
            assert "waiting" not in engine.prompts
            assert scheduler.queued == 0

    run(test)


def test_the_deadline_also_holds_while_waiting() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            engine.gate.clear()
            answers = await asyncio.gather(*(answer_of(scheduler, str(n), seconds=0.05) for n in range(4)))
            assert [end for _, end in answers] == [Fault(kind=FaultKind.DEADLINE)] * 4
            engine.gate.set()
            await until(lambda: not engine.running)
            assert (await answer_of(scheduler, "after"))[0] == "abcde"

    run(test)


def test_abort_ends_all_and_all_that_follow() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            tasks = [
                asyncio.ensure_future(answer_of(scheduler, str(n), output_tokens=10**9)) for n in range(3)
            ]
            await until(lambda: len(engine.running) == 2)
            scheduler.stop_admitting()
            with pytest.raises(NotServingError):
                scheduler.reserve("one")
            scheduler.abort()
            ends = [end for _, end in await asyncio.gather(*tasks)]
            assert ends == [Fault(kind=FaultKind.SHUTTING_DOWN)] * 3
            outputs = scheduler.generate(
                make_request("late"), client="one", stops=(), deadlines=Deadlines(first_token=0, end=0)
            )
            assert [output async for output in outputs] == [Fault(kind=FaultKind.SHUTTING_DOWN)]

    run(test)


def test_what_the_engine_refuses_is_a_fault_of_that_request_only() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            assert (await answer_of(scheduler, "bad", prompt=0))[1] == Fault(kind=FaultKind.ENGINE)
            assert (await answer_of(scheduler, "good"))[0] == "abcde"

    run(test)


def test_a_broken_engine_ends_everything() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine) as scheduler:
            engine.gate.clear()
            tasks = [asyncio.ensure_future(answer_of(scheduler, str(n))) for n in range(4)]
            await until(lambda: len(engine.running) == 2)
            engine.is_broken = True
            engine.gate.set()
            ends = [end for _, end in await asyncio.gather(*tasks)]
            assert ends == [Fault(kind=FaultKind.ENGINE)] * 4
            assert (scheduler.state, scheduler.failure) == (State.FAILED, "broken for good")
            with pytest.raises(NotServingError):
                scheduler.reserve("one")

    run(test)


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


def test_several_places_at_once() -> None:
    async def test(engine: LetterEngine) -> None:
        async with running(engine, queue=2, client_requests=3) as scheduler:
            assert scheduler.most_of_one == 3
            place = scheduler.reserve("one", 2)
            with pytest.raises(ClientLimitError):
                scheduler.reserve("one", 2)
            with pytest.raises(QueueFullError):
                scheduler.reserve("two", 3)
            other = scheduler.reserve("two", 2)
            with pytest.raises(QueueFullError):
                scheduler.reserve("three")
            place.release()
            place.release()
            assert scheduler.queued == 0
            other.release()
            scheduler.reserve("one", 3).release()

    run(test)

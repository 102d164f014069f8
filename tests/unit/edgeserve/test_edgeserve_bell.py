"""How other threads call the event loop."""

import asyncio
import os
import threading
from pathlib import Path

from edgeserve.bell import Bell


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _ring_and_wait(bell: Bell, done: asyncio.Event, count: int, made: list[int]) -> None:
    def ring() -> None:
        for number in range(count):
            bell.ring(lambda number=number: made.append(number))  # type: ignore[misc]
        bell.ring(done.set)

    thread = threading.Thread(target=ring)
    thread.start()
    await asyncio.wait_for(done.wait(), 10)
    thread.join()


def test_calls_are_made_in_order_on_the_event_loop() -> None:
    async def go() -> None:
        bell, done, made = Bell(asyncio.get_running_loop()), asyncio.Event(), list[int]()
        await _ring_and_wait(bell, done, 1000, made)
        assert made == list(range(1000))
        bell.close()

    asyncio.run(go())


def test_a_call_that_raises_is_reported_and_keeps_no_other_back() -> None:
    async def go() -> None:
        loop, reported, done = asyncio.get_running_loop(), list[object](), asyncio.Event()
        loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        bell = Bell(loop)

        def fail() -> None:
            raise ValueError("of a test")

        # Both before the event loop looks.
        bell.ring(fail)
        bell.ring(done.set)
        await asyncio.wait_for(done.wait(), 10)
        assert [str(error) for error in reported] == ["of a test"]
        bell.close()

    asyncio.run(go())


def test_closing_makes_what_was_asked_for_and_gives_the_descriptor_back() -> None:
    async def go() -> None:
        loop = asyncio.get_running_loop()
        before, made = _descriptors(), list[str]()
        bell = Bell(loop)
        bell.ring(lambda: made.append("before"))
        bell.close()
        bell.close()
        bell.ring(lambda: made.append("after"))
        await asyncio.sleep(0.01)
        assert made == ["before"]
        assert _descriptors() == before

    asyncio.run(go())


def test_a_loop_that_is_closed_has_nobody_left_to_tell() -> None:
    loop = asyncio.new_event_loop()
    bell = Bell(loop)
    loop.remove_reader(bell._counter)
    loop.close()
    bell.ring(lambda: None)
    bell.close()
    os.close(bell._counter)

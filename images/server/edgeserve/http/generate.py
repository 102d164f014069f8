"""Runs one generating request from its prompt to the last byte of its answer.

1. Take a place in the queue, so that prompts being prepared are bounded too.
2. Make the prompt's tokens beside the event loop.
3. Hand it to the scheduler and pass the answer on, whole or as server-sent events.
Throughout, the client may leave, which cancels the work, and one deadline holds for all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgeserve.answers import End, Fault, FaultKind, Output, Text
from edgeserve.engine.protocol import Request
from edgeserve.http.errors import from_fault, not_serving, queue_full
from edgeserve.http.exchange import ClientGoneError, Exchange
from edgeserve.http.schemas import Generation
from edgeserve.http.shapes import DONE, Shape
from edgeserve.scheduler import NotServingError, Place, QueueFullError, Scheduler

if TYPE_CHECKING:
    from edgeserve.http.prompts import PromptMaker

_STREAM_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}
# After the deadline, what is written so far gets this long to reach a client that reads slowly.
_LAST_WRITE_S: Final = 2.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What the log says about a request; filled in as it goes."""

    result: str = "error"
    end: End | None = None


class Generator:
    """Answers requests with one scheduler."""

    def __init__(self, scheduler: Scheduler, prompts: PromptMaker) -> None:
        self._scheduler = scheduler
        self._prompts = prompts

    async def answer(
        self,
        exchange: Exchange,
        *,
        generation: Generation,
        make_prompt: Callable[[], Awaitable[tuple[int, ...]]],
        shape: Shape,
        deadline: float,
        outcome: Outcome,
    ) -> None:
        """Generate and send.

        Args:
            exchange: The request, its body read.
            generation: What the client asks for.
            make_prompt: Makes the prompt's tokens.
            shape: The form of the answer.
            outcome: Filled in for the log.
            deadline: Event loop time at which the request is over whatever its state.

        Raises:
            ApiError: The request ended before the response began.
            ClientGoneError: The client left.
        """
        try:
            place = self._scheduler.reserve()
        except QueueFullError as error:
            raise queue_full(error) from error
        except NotServingError as error:
            raise not_serving(error) from error
        try:
            await _unless_gone(
                exchange,
                self._run(
                    exchange,
                    generation,
                    make_prompt,
                    shape=shape,
                    place=place,
                    deadline=deadline,
                    outcome=outcome,
                ),
            )
        finally:
            place.release()

    async def _run(
        self,
        exchange: Exchange,
        generation: Generation,
        make_prompt: Callable[[], Awaitable[tuple[int, ...]]],
        *,
        shape: Shape,
        place: Place,
        deadline: float,
        outcome: Outcome,
    ) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                prompt = await make_prompt()
        except TimeoutError:
            raise from_fault(Fault(kind=FaultKind.DEADLINE)) from None
        most = self._prompts.output_tokens(len(prompt), generation.output_tokens, generation.output_field)
        request = Request(id=shape.id, prompt=prompt, output_tokens=most, sampling=generation.sampling)
        outputs = self._scheduler.generate(request, stops=generation.stops, place=place, deadline=deadline)
        async with aclosing(outputs):
            send = _send_stream if generation.is_stream else _send_whole
            await send(exchange, outputs, shape, outcome, deadline)


async def _send_whole(
    exchange: Exchange,
    outputs: AsyncGenerator[Output, None],
    shape: Shape,
    outcome: Outcome,
    _deadline: float,
) -> None:
    parts: list[str] = []
    async for output in outputs:
        match output:
            case Text():
                parts.append(output.text)
            case End():
                outcome.end, outcome.result = output, output.reason.value
                await exchange.answer(200, shape.whole("".join(parts), output))
            case Fault():
                raise from_fault(output)


async def _send_stream(
    exchange: Exchange, outputs: AsyncGenerator[Output, None], shape: Shape, outcome: Outcome, deadline: float
) -> None:
    """Send events as they come; status and headers wait for the first, so that an early fault has a status of its own."""
    try:
        async with asyncio.timeout_at(deadline + _LAST_WRITE_S):
            async for output in outputs:
                if isinstance(output, Fault) and not exchange.is_started:
                    raise from_fault(output)
                if not exchange.is_started:
                    await exchange.start(200, _STREAM_HEADERS)
                    await exchange.write(shape.opening())
                await _send_part(exchange, output, shape, outcome)
    except TimeoutError:
        outcome.result = "slow_reader"
        exchange.abort()


async def _send_part(exchange: Exchange, output: Output, shape: Shape, outcome: Outcome) -> None:
    match output:
        case Text():
            await exchange.write(shape.part(output.text))
        case End():
            outcome.end, outcome.result = output, output.reason.value
            await exchange.write(shape.closing(output) + DONE, is_last=True)
        case Fault():
            outcome.result = output.kind.value
            document = from_fault(output).document()
            await exchange.write(b"data: " + document + b"\n\n" + DONE, is_last=True)


async def _unless_gone(exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, but drop it when the client closes the connection.

    Raises:
        ClientGoneError: It did.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(exchange.wait_until_gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and not exchange.is_complete:
            raise ClientGoneError
        await task
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)

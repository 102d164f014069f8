"""Sends a generated answer over HTTP, whole or as server-sent events; the client may leave, which cancels the work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Final

from edgeserve.answers import Embedding, End, Fault, Output, Text, ToolCall
from edgeserve.errors import from_fault
from edgeserve.http.exchange import ClientGoneError, Exchange
from edgeserve.http.shapes import DONE, Shape
from edgeserve.records import Record

_STREAM_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}
# After the deadline, what is written so far gets this long to reach a client that reads slowly.
_LAST_WRITE_S: Final = 2.0


async def send_answer(
    exchange: Exchange,
    outputs: AsyncGenerator[Output, None],
    *,
    shape: Shape,
    is_stream: bool,
    deadline: float,
    record: Record,
) -> None:
    """Send what the scheduler yields.

    Args:
        exchange: The request, its body read.
        outputs: The answer as it grows; closed at the end, or when the client leaves.
        shape: The form of the answer.
        is_stream: Whether it is sent as it grows.
        deadline: Event loop time at which the request is over whatever its state.
        record: Told of a client that reads too slowly.

    Raises:
        ApiError: The request ended before the response began.
        ClientGoneError: The client left.
    """
    send = (
        _send_stream(exchange, outputs, shape, record, deadline)
        if is_stream
        else _send_whole(exchange, outputs, shape)
    )
    await unless_gone(exchange, _closing(outputs, send))


async def _closing(outputs: AsyncGenerator[Output, None], send: Coroutine[Any, Any, None]) -> None:
    async with aclosing(outputs):
        await send


async def _send_whole(exchange: Exchange, outputs: AsyncGenerator[Output, None], shape: Shape) -> None:
    parts: list[Text | ToolCall] = []
    async for output in outputs:
        assert not isinstance(output, Embedding)
        match output:
            case Text() | ToolCall():
                parts.append(output)
            case End():
                await exchange.answer(200, shape.whole(parts, output))
            case Fault():
                raise from_fault(output)


async def _send_stream(
    exchange: Exchange, outputs: AsyncGenerator[Output, None], shape: Shape, record: Record, deadline: float
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
                await _send_part(exchange, output, shape)
    except TimeoutError:
        record.result = "slow_reader"
        exchange.abort()


async def _send_part(exchange: Exchange, output: Output, shape: Shape) -> None:
    assert not isinstance(output, Embedding)
    match output:
        case Text() | ToolCall():
            await exchange.write(shape.part(output))
        case End():
            await exchange.write(shape.closing(output) + DONE, is_last=True)
        case Fault():
            document = from_fault(output).document()
            await exchange.write(b"data: " + document + b"\n\n" + DONE, is_last=True)


async def unless_gone(exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
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
        # What the task raised holds this frame, which would hold the task: with the request, until a collection.
        del task, one

"""What every call passes: its record, its errors in gRPC's form, and the count of those that a stop waits for."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, NoReturn, TypeAlias
from urllib.parse import unquote

import grpc

from edgeserve.access.door import Door
from edgeserve.errors import ApiError
from edgeserve.grpc.credentials import certified_by
from edgeserve.grpc.reading import Context, MessageReader
from edgeserve.grpc.status import status_code, trailing_metadata
from edgeserve.log import Log, described
from edgeserve.records import Observer, Record

# Quoted: generic in the stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# Calls at once beyond slots and queue: probes, watchers, those that are refused. Watchers stay, so they may not take all.
_MOST_OTHERS: Final = 32
OTHER_CALLS: Final = 2 * _MOST_OTHERS
# For a status to reach a client that reads slowly.
_LAST_STATUS_S: Final = 2.0

# The client's clock ran out a little earlier: it began when the request was sent.
_CLOCKS_APART_S: Final = 0.25

# A cell, emptied when its call is over: asyncio keeps the context of a timer that was cancelled until its time comes, and
# with it whatever the request was.
_RECORD: Final[ContextVar[list[Record]]] = ContextVar("record")


def current_record() -> Record:
    """Return the record of the call that runs in this task."""
    (record,) = _RECORD.get()
    return record


class Gate(grpc.aio.ServerInterceptor):
    """Stands before all services, health and reflection too."""

    def __init__(
        self,
        *,
        awaited: str,
        open_to_all: Collection[str],
        door: Door,
        messages: MessageReader,
        log: Log,
        observers: Sequence[Observer],
    ) -> None:
        """Take what calls need to pass.

        Args:
            awaited: Name of the service whose calls a stop waits for; the others are streams that stay open for good.
            open_to_all: Methods that need neither key nor certificate.
            door: Says who asks.
            messages: Reads the message of a call.
            log: Told of faults of ours.
            observers: Hear of every call.
        """
        self._awaited = f"/{awaited}/"
        self._open_to_all = frozenset(open_to_all)
        self._door = door
        self._messages = messages
        self._log = log
        self._observers = tuple(observers)
        self._running = self._others = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        """Return once no call runs that a stop waits for."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of a call; a method that does not exist gets one, so that it is recorded."""
        found = await continuation(handler_call_details)
        handler, method = found or _UNKNOWN, handler_call_details.method
        if handler.response_streaming:
            return self._streaming(handler, method)
        return self._single(handler, method)

    def _single(self, handler: Handler, method: str) -> Handler:
        function: Any = handler.unary_unary
        parse = handler.request_deserializer

        async def answer(_messages: object, context: Context) -> Any:
            async with self._call(method, context) as record:
                return await function(await self._messages.read(parse, context, record), context)

        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    def _streaming(self, handler: Handler, method: str) -> Handler:
        function: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
        is_stream = handler.request_streaming

        async def answer(messages: Any, context: Context) -> None:
            async with self._call(method, context) as record:
                request = (
                    messages
                    if is_stream
                    else await self._messages.read(handler.request_deserializer, context, record)
                )
                answers = function(request, context)
                if not inspect.isasyncgen(answers):
                    await answers
                    return
                async with aclosing(answers):
                    async for one in answers:
                        await context.write(one)

        parse = handler.request_deserializer if is_stream else None
        return grpc.stream_stream_rpc_method_handler(answer, parse, handler.response_serializer)

    def _check_room(self) -> None:
        """Refuse one more health check, watcher or reflection than there may be."""
        if self._others > _MOST_OTHERS:
            message = "Too many health checks and reflections at once."
            headers = {"retry-after": "1"}
            raise ApiError(429, message, kind="rate_limit_error", code="busy", headers=headers)

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[Record]:
        record = Record(interface="grpc", method="rpc", route=method)
        _RECORD.set(cell := [record])
        is_awaited = method.startswith(self._awaited)
        if is_awaited:
            self._running += 1
            self._idle.clear()
        else:
            self._others += 1
        try:
            if not is_awaited:
                self._check_room()
            if method not in self._open_to_all:
                record.client = self._door.admit(
                    certified=certified_by(context.auth_context()),
                    authorization=_authorization(context),
                    address=_address(context.peer()),
                )
            record.result = "ok"
            yield record
            record.status = 200
        except ApiError as error:
            record.result, record.status = error.code or "invalid", error.status
            await _refuse(context, error)
        except asyncio.CancelledError:
            remaining: float | None = context.time_remaining()
            is_late = remaining is not None and remaining < _CLOCKS_APART_S
            record.result = "deadline" if is_late else "client_gone"
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours must not reach the client in our words
            record.result, record.status = "internal", 500
            self._log.error("internal", path=method, **described(error))
            await _refuse(context, ApiError(500, "Internal error.", kind="server_error", code="internal"))
        finally:
            if is_awaited:
                self._running -= 1
                if self._running == 0:
                    self._idle.set()
            else:
                self._others -= 1
            record.seconds = time.monotonic() - record.started
            for observer in self._observers:
                observer.on_request(record)
            cell.clear()


def _address(peer: str) -> str:
    """Take the address out of what gRPC says of a peer: "ipv4:192.0.2.1:50000", "ipv6:%5B2001:db8::1%5D:50000"."""
    family, _, rest = peer.partition(":")
    return unquote(rest.rpartition(":")[0]).strip("[]") if family in {"ipv4", "ipv6"} else ""


def _authorization(context: Context) -> str | None:
    found = (value for key, value in context.invocation_metadata() or () if key == "authorization")
    value = next(found, None)
    return value if value is None or isinstance(value, str) else value.decode("latin-1")


async def _refuse(context: Context, error: ApiError) -> NoReturn:
    try:
        async with asyncio.timeout(_LAST_STATUS_S):
            await context.abort(status_code(error), error.message, trailing_metadata(error))
    except TimeoutError:
        # A status waits behind the messages that the client does not read. Without one gRPC resets the stream.
        raise asyncio.CancelledError from None


async def _no_method(_request: object, _context: Context) -> NoReturn:
    raise ApiError(405, "There is no such method here.", code="no_such_method")


_UNKNOWN: Final[Handler] = grpc.unary_unary_rpc_method_handler(_no_method)

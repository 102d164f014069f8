"""One HTTP request and its response, on bare ASGI.

No framework: the six routes need exactly what frameworks hide, the body counted while it comes in, the moment at which a
client leaves, and a hand on the transport of one that does not read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final, Protocol

from edgeserve.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 1 << 24


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


class Connection(Protocol):
    """What the server's protocol class puts into the scope's state."""

    certified: str | None
    """Name in the client's verified certificate."""

    is_lost: bool
    """Whether it has ended; what is sent then goes nowhere, and nobody says so."""

    @property
    def is_outdated(self) -> bool:
        """Whether the connection should end with this response, since other clients are trusted by now."""

    def abort(self) -> None:
        """Close the connection at once, whatever has not been sent."""


class Exchange:
    """Reads one request and writes one response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.is_started = False
        self.status = 0
        self.received_bytes = 0
        self.has_whole_body = False
        self.is_complete = False
        # None where the connection has no addresses: a Unix socket.
        self.peer_address: str = (scope.get("client") or ("",))[0]
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._connection: Connection | None = scope.get("state", {}).get("connection")
        self._receive = receive
        self._send = send

    @property
    def certified(self) -> str | None:
        """Name in the verified certificate of the connection, None without one."""
        return None if self._connection is None else self._connection.certified

    def header(self, name: str) -> str | None:
        """Return the first value of a header; `name` in lower case."""
        wanted = name.encode("ascii")
        return next((value.decode("latin-1") for key, value in self._headers if key == wanted), None)

    async def read(self) -> bytes | None:
        """Return the next part of the body, None after the last.

        Raises:
            ClientGoneError: The body was cut short.
        """
        if self.has_whole_body:
            return None
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self.has_whole_body = not message.get("more_body", False)
        part = bytes(message.get("body", b""))
        self.received_bytes += len(part)
        return part

    async def wait_until_gone(self) -> None:
        """Return when the client has closed the connection; call it only after the whole body."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers."""
        self.is_started, self.status = True, status
        if self._connection is not None and self._connection.is_outdated:
            # Said ahead, so that no client sends a request into a connection that is being closed.
            headers = {**headers, "connection": "close"}
        raw = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Send a part of the response's body; waits while the client does not read.

        Raises:
            ClientGoneError: The client left, or was cut off since it did not read.
        """
        self.is_complete = is_last
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        if self._connection is not None and self._connection.is_lost:
            raise ClientGoneError

    async def answer(self, status: int, document: object, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole JSON response."""
        data = document if isinstance(document, bytes) else _encode(document)
        given = {
            "content-type": "application/json",
            "content-length": str(len(data)),
            "cache-control": "no-store",
        }
        given |= headers or {}
        if not self.has_whole_body and self.method == "POST":
            # What is left of the body cannot be told from a next request.
            given["connection"] = "close"
        await self.start(status, given)
        if given.get("connection") == "close" and not self.has_whole_body:
            await self.write(data)
            await self._linger()
            await self.write(b"", is_last=True)
        else:
            await self.write(data, is_last=True)

    async def _linger(self) -> None:
        """Read on for a moment: closing with unread data resets the connection, and the client never sees the answer."""
        seen = 0
        try:
            async with asyncio.timeout(_LINGER_S):
                while seen < _LINGER_BYTES:
                    part = await self.read()
                    if part is None:
                        return
                    seen += len(part)
        except (TimeoutError, ClientGoneError):
            return

    def abort(self) -> None:
        """Drop the connection of a client that does not read."""
        if self._connection is not None:
            self._connection.abort()


def plain_response(error: ApiError) -> bytes:
    """Render a whole response for a connection that never had a request, or none that could be read."""
    body = error.document()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "connection": "close",
    } | dict(error.headers)
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


def _encode(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

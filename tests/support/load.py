"""Clients that load a server: many streamed completions side by side, from one thread that takes little of the machine.

While answers arrive, only their bytes and times are kept; they are read when all is over.
"""

import json
import re
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_EVENT = re.compile(rb"^data: (.*)$", re.MULTILINE)
_RECEIVE_BYTES = 1 << 16
# After the first event a client sleeps until so much has arrived, or the end: on a device it is another machine.
_WAKE_BYTES = 1 << 14
_STILL_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request for a stream.

    Attributes:
        document: The body, without `stream`.
        leaves_after: Events after which the client closes the connection; 0 reads to the end.
        path: Where to.
    """

    document: Mapping[str, Any]
    leaves_after: int = 0
    path: str = "/v1/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a call.

    Attributes:
        status: HTTP status; 0 when none came.
        finish: The finish reason; "" when the stream ended without one.
        has_left: Whether the client closed the connection before the end, as it was told to.
        begin_s: When it was sent, on the monotonic clock.
        first_s: When the first event arrived; `end_s` if none did.
        end_s: When it was over.
        body: The body received, chunked coding undone.
    """

    status: int
    finish: str
    has_left: bool
    begin_s: float
    first_s: float
    end_s: float
    body: bytes

    def describe(self) -> str:
        """Tell what went wrong."""
        return f"status {self.status}, finish {self.finish!r}, {self.body[-300:]!r}"


def run_calls(port: int, calls: Iterable[Call], *, clients: int, still_s: float = _STILL_S) -> list[Answer]:
    """Send all calls, at most `clients` at a time, and return their answers in the order in which they ended.

    Args:
        port: On the loopback.
        calls: The calls.
        clients: Most of them under way at a time.
        still_s: Seconds without a byte after which it is given up.

    Raises:
        AssertionError: Nothing arrived for a long time.
    """
    waiting = iter(calls)
    answers: list[Answer] = []
    with selectors.DefaultSelector() as selector:
        for call in _take(waiting, clients):
            _send(selector, port, call)
        while selector.get_map():
            ready = selector.select(still_s)
            assert ready, f"nothing arrived for {still_s:.0f} s; {len(answers)} calls are over"
            for key, _ in ready:
                stream: _Stream = key.data
                if stream.receive():
                    continue
                selector.unregister(stream.connection)
                stream.connection.close()
                answers.append(stream.answer())
                for call in _take(waiting, 1):
                    _send(selector, port, call)
    return answers


def _take(calls: Iterator[Call], count: int) -> Iterator[Call]:
    for _, call in zip(range(count), calls, strict=False):
        yield call


def _send(selector: selectors.BaseSelector, port: int, call: Call) -> None:
    stream = _Stream(port, call)
    selector.register(stream.connection, selectors.EVENT_READ, stream)


class _Stream:
    """One call under way."""

    def __init__(self, port: int, call: Call) -> None:
        self._call = call
        self._parts: list[bytes] = []
        self._events = 0
        self._has_left = False
        self._end_s = 0.0
        self._first_s = 0.0
        body = json.dumps({**call.document, "stream": True}).encode()
        head = (
            f"POST {call.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._begin_s = time.monotonic()
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.sendall(head.encode() + body)

    def receive(self) -> bool:
        """Take what has arrived; False when the call is over."""
        try:
            part = self.connection.recv(_RECEIVE_BYTES)
        except ConnectionResetError:
            part = b""
        now_s = time.monotonic()
        if part:
            self._parts.append(part)
            self._events += part.count(b"data: ")
            if self._events and not self._first_s:
                self._first_s = now_s
                if not self._call.leaves_after:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _WAKE_BYTES)
            self._has_left = 0 < self._call.leaves_after <= self._events and b"[DONE]" not in part
        if part and not self._has_left:
            return True
        self._end_s = now_s
        return False

    def answer(self) -> Answer:
        head, _, body = b"".join(self._parts).partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            body = b"".join(_chunks(body))
        found = re.match(rb"HTTP/1\.1 (\d{3})", head)
        return Answer(
            status=int(found[1]) if found else 0,
            finish=_finish(body),
            has_left=self._has_left,
            begin_s=self._begin_s,
            first_s=self._first_s or self._end_s,
            end_s=self._end_s,
            body=body,
        )


def _chunks(data: bytes) -> Iterator[bytes]:
    """Yield the parts of a chunked body (RFC 9112, 7.1), as far as it came."""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size or b"0", 16)
        yield data[:length]
        data = data[length + 2 :]


def _finish(body: bytes) -> str:
    for event in reversed(_EVENT.findall(body)):
        if event.startswith(b"{") and event.rstrip().endswith(b"}"):
            for choice in json.loads(event).get("choices", ()):
                if choice["finish_reason"]:
                    return str(choice["finish_reason"])
    return ""

"""One HTTP connection: uvicorn's, with what a hostile client makes necessary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from edgeserve.access.tls import certified_name
from edgeserve.errors import ApiError
from edgeserve.http.exchange import plain_response
from edgeserve.settings import LimitSettings

# asyncio lets half a megabyte wait in front of TLS.
_BUFFER_BYTES: Final = 65536


class EdgeProtocol(H11Protocol):
    """One connection; the application finds it in the scope's state as `connection`.

    Time-outs, none of which a client can put off by sending or reading a little:
    - `header_s` from the opening, or from the first byte of a later request, to the end of its header;
    - `idle_s` between requests;
    - `unread_s` for a full buffer to become half empty, and for the rest of an answer after its end.
    """

    def __init__(
        self,
        *,
        raw: asyncio.Transport,
        is_outdated: Callable[[], bool],
        limits: LimitSettings,
        on_lost: Callable[[], None],
        **given: Any,
    ) -> None:
        """Prepare for a connection.

        Args:
            raw: The TCP connection, beneath TLS if there is any.
            is_outdated: Whether other clients are trusted by now than when it was opened.
            limits: The time-outs.
            on_lost: Called at its end.
            **given: What uvicorn gives every connection.
        """
        super().__init__(**given)
        self.app_state = {**self.app_state, "connection": self}
        self.timeout_keep_alive = limits.idle_s
        self.certified: str | None = None
        self.is_lost = False
        self._raw = raw
        self._is_outdated = is_outdated
        self._limits = limits
        self._on_lost = on_lost
        self._header_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, after the handshake if there is one."""
        super().connection_made(transport)
        if transport is not self._raw:
            self.certified = certified_name(transport.get_extra_info("peercert"))
            transport.set_write_buffer_limits(_BUFFER_BYTES)
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and let go of what holds this object in turn: the collector would not look at it for long, and TLS is heavy."""
        super().connection_lost(exc)
        self.is_lost = True
        self.app_state = {}
        self.cycle = cast("RequestResponseCycle", None)
        self.scope = cast("Any", None)
        self._on_lost()
        self._unset_keepalive_if_required()
        for timer in (self._header_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()

    @property
    def is_outdated(self) -> bool:
        """Whether the response in progress should be the connection's last."""
        return self._is_outdated()

    def data_received(self, data: bytes) -> None:
        """Take data, but none after the end: TLS may still have some."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch_header()

    def _watch_header(self) -> None:
        """Let the time for a header run while one is awaited, and only then."""
        is_awaited = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if is_awaited and self._header_timer is None:
            self._header_timer = self.loop.call_later(self._limits.header_s, self._on_late_header)
        elif not is_awaited and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_late_header(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            message = f"The request's header did not arrive within {self._limits.header_s} s."
            self.transport.write(plain_response(ApiError(408, message, code="header_timeout")))
        self._close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form of every other refusal."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            self.abort()
            return
        self.transport.write(plain_response(ApiError(400, msg, code="invalid_http")))
        self._close()

    def on_response_complete(self) -> None:
        """Give the client a bounded time to read what is still in the buffer."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        if self._waiting_for_tls() + self._raw.get_write_buffer_size() > 0:
            self.loop.call_later(self._limits.unread_s, self._abort_if_unread)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._close()

    def shutdown(self) -> None:
        """Close now if idle, else after the response."""
        if not self.transport.is_closing():
            super().shutdown()
        if self.transport.is_closing():
            self._close()

    def pause_writing(self) -> None:
        """Give a client whose buffer is full a bounded time to read."""
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(self._limits.unread_s, self.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def abort(self) -> None:
        """Close at once, whatever has not been sent."""
        self._raw.abort()

    def _abort_if_unread(self) -> None:
        if self._waiting_for_tls() + self._raw.get_write_buffer_size() > 0 and self.cycle.response_complete:
            self.abort()

    def _waiting_for_tls(self) -> int:
        """Count the bytes that TLS holds back until the connection takes more."""
        if self.is_lost or self.transport is self._raw:
            return 0
        try:
            return self.transport.get_write_buffer_size()
        except AttributeError:
            # uvicorn closes again what the client has closed, and asyncio's TLS forgets itself then (CPython 3.11 to 3.13).
            return 0

    def _close(self) -> None:
        """Close without waiting for the client's close_notify, which nobody owes us (RFC 8446, 6.1)."""
        if not self.transport.is_closing():
            self.transport.close()
        if self._waiting_for_tls() == 0:
            self._raw.close()

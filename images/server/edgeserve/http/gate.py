"""The gate: every new TCP connection passes it, is counted, and gets TLS if there is any."""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from edgeserve.access.refusals import Refusals
from edgeserve.access.tls import Certificates
from edgeserve.access.watched import Watched
from edgeserve.clients import network_of
from edgeserve.errors import ApiError
from edgeserve.http.connection import EdgeProtocol
from edgeserve.http.exchange import plain_response
from edgeserve.log import Log
from edgeserve.settings import LimitSettings


class Gate:
    """Counts connections and turns them into HTTP's, bounded in all and by address."""

    def __init__(self, *, tls: Watched[Certificates] | None, limits: LimitSettings, log: Log) -> None:
        """Take the bounds.

        Args:
            tls: Certificates; each handshake takes those of its moment. None: no TLS.
            limits: The bounds and time-outs.
            log: Told of connections that are turned away, sparingly.
        """
        self._tls = tls
        self._limits = limits
        self._refusals = Refusals(log)
        self._open: dict[asyncio.Transport, str] = {}
        self._by_address: Counter[str] = Counter()

    def make_protocol(self, **given: Any) -> asyncio.Protocol:
        """Make the protocol of one connection from what uvicorn gives it."""
        return _Arrival(self, given)

    def enter(self, raw: asyncio.Transport, given: dict[str, Any]) -> None:
        """Let a connection in or turn it away."""
        address = _network(raw.get_extra_info("peername"))
        limits = self._limits
        if len(self._open) >= limits.connections:
            self._refuse(raw, "too many connections", address)
        elif self._by_address[address] >= limits.connections_per_address:
            self._refuse(raw, "too many connections from one address", address)
        else:
            self._open[raw] = address
            self._by_address[address] += 1
            self._pass(raw, given)

    def leave(self, raw: asyncio.Transport) -> None:
        """Count a connection off."""
        address = self._open.pop(raw)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def abort(self) -> None:
        """Close all connections at once, those in their handshake too."""
        for raw in list(self._open):
            raw.abort()

    def abort_handshakes(self) -> None:
        """Close the connections that have no TLS yet."""
        for raw in list(self._open):
            protocol = raw.get_protocol()
            if isinstance(protocol, _Tls) and protocol.is_opening:
                raw.abort()

    def _pass(self, raw: asyncio.Transport, given: dict[str, Any]) -> None:
        tls = self._tls
        certificates = None if tls is None else tls.value

        trusted = None if certificates is None else certificates.client_ca

        def is_outdated() -> bool:
            return tls is not None and tls.value.client_ca != trusted

        def on_lost() -> None:
            self.leave(raw)

        limits = self._limits
        if certificates is None:
            plain = EdgeProtocol(raw=raw, is_outdated=is_outdated, limits=limits, on_lost=on_lost, **given)
            raw.set_protocol(plain)
            plain.connection_made(raw)
            return
        inner = EdgeProtocol(raw=raw, is_outdated=is_outdated, limits=limits, on_lost=_nothing, **given)
        outer = _Tls(inner, certificates.context, limits=limits, on_lost=on_lost, on_end=self._on_handshake)
        raw.set_protocol(outer)
        outer.connection_made(raw)

    def _refuse(self, raw: asyncio.Transport, reason: str, address: str) -> None:
        self._refusals.tell(reason, address)
        if self._tls is not None:
            # A handshake costs more than everything that could be said after it.
            raw.abort()
            return
        message = f"The server has {reason}."
        error = ApiError(
            503, message, kind="server_error", code="too_many_connections", headers={"retry-after": "1"}
        )
        raw.write(plain_response(error))
        raw.close()

    def _on_handshake(self, raw: asyncio.Transport, error: BaseException) -> None:
        if isinstance(error, ssl.SSLError):
            # The first is what the client's certificate lacks, in words; the second OpenSSL's name of the fault.
            reason = getattr(error, "verify_message", "") or error.reason or "unknown"
        elif isinstance(error, ConnectionAbortedError):
            reason = "handshake too slow"
        else:
            return  # the client left, as port scanners and probes do
        self._refusals.tell(reason, _network(raw.get_extra_info("peername")))


class _Arrival(asyncio.Protocol):
    """Holds a connection for the moment until the gate has decided."""

    def __init__(self, gate: Gate, given: dict[str, Any]) -> None:
        self._gate = gate
        self._given = given

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._gate.enter(cast("asyncio.Transport", transport), self._given)


class _Tls(SSLProtocol):
    """asyncio's TLS with a buffer of one record and a half: its own takes 256 KiB of every connection, open for long or not.

    The class is not documented, but its constructor has been the same since Python 3.11, and `loop.start_tls`, the documented
    way, has no say in the buffer and may deliver data before its caller knows of the handshake.
    """

    max_size = 24 * 1024

    def __init__(
        self,
        inner: EdgeProtocol,
        context: ssl.SSLContext,
        *,
        limits: LimitSettings,
        on_lost: Callable[[], None],
        on_end: Callable[[asyncio.Transport, BaseException], None],
    ) -> None:
        """Wrap a connection.

        Args:
            inner: What speaks inside.
            context: With the certificates.
            limits: The time-outs.
            on_lost: Called at the end of the connection.
            on_end: Called with the error of a handshake that failed.
        """
        self._handshake: asyncio.Future[None] = inner.loop.create_future()
        super().__init__(
            inner.loop,
            inner,
            context,
            self._handshake,
            server_side=True,
            ssl_handshake_timeout=limits.header_s,
            ssl_shutdown_timeout=limits.unread_s,
        )
        self._on_lost = on_lost
        self._on_end = on_end

    @property
    def is_opening(self) -> bool:
        """Whether the handshake is not over yet."""
        return not self._handshake.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        raw = cast("asyncio.Transport", transport)
        self._handshake.add_done_callback(lambda handshake: self._on_outcome(raw, handshake.exception()))
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End, whether or not there was a handshake."""
        super().connection_lost(exc)
        self._on_lost()

    def _on_outcome(self, raw: asyncio.Transport, error: BaseException | None) -> None:
        if error is not None:
            self._on_end(raw, error)


def _nothing() -> None:
    """Do nothing; TLS counts its connections itself, those without a handshake too."""


def _network(peer: object) -> str:
    return network_of(str(peer[0]) if isinstance(peer, tuple) else "")

"""uvicorn as a part of a larger program: no signal handlers of its own, and a hand on each connection."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeserve.http.app import App

_BACKLOG: Final = 256
_KEEP_ALIVE_S: Final = 15
# What a client has not read this long after the end of its response, it never will.
_UNREAD_S: Final = 30.0


class EdgeProtocol(H11Protocol):
    """One connection; the application finds it in the scope's state as `connection`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app_state = {**self.app_state, "connection": self}
        self.certified: str | None = None

    def abort(self) -> None:
        """Close at once, whatever has not been sent."""
        if self.transport is not None:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Give the client a bounded time to read what is still in the buffer."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size() > 0:
            self.loop.call_later(_UNREAD_S, self._abort_if_unread)

    def _abort_if_unread(self) -> None:
        if self.transport.get_write_buffer_size() > 0 and self.cycle.response_complete:
            self.abort()


class EdgeServer(uvicorn.Server):
    """Leaves signals to `edgeserve.serve`: uvicorn would raise them again at the end, and the exit code would be theirs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield

    def stop_listening(self) -> None:
        """Refuse new connections at once; uvicorn looks at `should_exit` ten times a second."""
        self.should_exit = True
        if self.started:
            for server in self.servers:
                server.close()

    def abort_connections(self) -> None:
        """Close what is still open at once."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, EdgeProtocol):
                connection.abort()


def make_server(app: App, *, shutdown_s: float) -> EdgeServer:
    """Make a server for sockets that are already bound.

    Args:
        app: The application.
        shutdown_s: Time from `should_exit` until running requests are cut off.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=EdgeProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(shutdown_s)),
    )
    return EdgeServer(config)


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen.

    Raises:
        OSError: The address cannot be used.
    """
    family, kind, number, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.settimeout(0)
    except OSError:
        listener.close()
        raise
    return listener

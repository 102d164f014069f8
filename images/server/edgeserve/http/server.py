"""uvicorn as a part of a larger program: no signal handlers of its own, and a gate before every connection."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Final, cast

import uvicorn

from edgeserve.http.app import App
from edgeserve.http.gate import Gate

_BACKLOG: Final = 128
# Connections being turned away (asyncio accepts as many at once as may be waiting; three times that were seen), and what is none.
_OTHER_FILES: Final = 4 * _BACKLOG + 64


class EdgeServer(uvicorn.Server):
    """Leaves signals to `edgeserve.serve`: uvicorn would raise them again at the end, and the exit code would be theirs."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self._gate = gate

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
        self._gate.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does, not waiting for connections that it does not know yet."""
        self._gate.abort_handshakes()
        await super().shutdown(sockets)


def make_server(app: App, gate: Gate, *, shutdown_s: float) -> EdgeServer:
    """Make a server for sockets that are already bound.

    Args:
        app: The application.
        gate: Where connections come in.
        shutdown_s: Time from `should_exit` until running requests are cut off.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        # uvicorn calls it, as it would a class.
        http=cast("type[asyncio.Protocol]", gate.make_protocol),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(1, round(shutdown_s)),
    )
    return EdgeServer(config, gate)


def allow_files(connections: int) -> int:
    """Raise the soft limit of open files to what the connections need, as far as the hard limit lets.

    Returns:
        How many are missing still; 0 is well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= need:
        return 0
    most = need if hard == resource.RLIM_INFINITY else min(need, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    return need - max(soft, most)


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

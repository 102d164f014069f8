"""What `edgeserve health` talks to: says one word to whoever connects, and closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from edgeserve.health import probe_name


class _Probe(asyncio.Protocol):
    def __init__(self, status: Callable[[], str]) -> None:
        self._status = status

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        answering = cast("asyncio.Transport", transport)
        answering.write(self._status().encode("ascii"))
        answering.close()


async def serve_probe(host: str, port: int, status: Callable[[], str]) -> asyncio.Server:
    """Answer probes until the server returned is closed.

    Args:
        host: Address that the server was told to listen on.
        port: Port that it listens on.
        status: The word to say; "ready" is health.

    Raises:
        OSError: The name is taken.
    """
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(lambda: _Probe(status), path=probe_name(host, port))

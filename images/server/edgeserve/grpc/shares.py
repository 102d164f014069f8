"""A share of gRPC's connections for each address.

gRPC's library accepts, counts and closes connections by itself, and has a bound for all of them together only, which one
address could use up. So the server looks every second whose connections they are, among its own open files. Those that an
address has beyond its share are shut down from outside, on which the library lets go of them as if the client had left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable
from typing import Final, Self

from edgeserve.access.refusals import Refusals
from edgeserve.clients import network_of
from edgeserve.log import Log

_INTERVAL_S: Final = 1.0
_FILES: Final = "/proc/self/fd"


class Shares:
    """Bounds the connections that each address has open to a port."""

    def __init__(self, *, port: int, most: int, log: Log) -> None:
        """Take the bound; nobody has connected yet.

        Args:
            port: The port, of this process.
            most: Connections from one IPv4 address or IPv6 /64.
            log: Told of connections that are ended, sparingly.
        """
        self._port = port
        self._most = most
        self._log = log
        self._refusals = Refusals(log)

    async def watch(self) -> None:
        """Look again and again."""
        try:
            others = len(os.listdir(_FILES))  # noqa: PTH208 - names only, once a second
            while True:
                await asyncio.sleep(_INTERVAL_S)
                files = os.listdir(_FILES)  # noqa: PTH208 - as above
                # Mostly there are too few files for anyone to have too many.
                if len(files) - others > self._most:
                    self.look(map(int, files))
        except OSError as error:
            self._log.warning(
                "shares", problem=error.strerror, note="one address may take all connections of gRPC"
            )

    def look(self, files: Iterable[int]) -> None:
        """End the connections that are too many among the open files.

        The kernel gives the lowest number that is free, so that of one address the connections that came last mostly have
        the highest.
        """
        found: dict[str, list[int]] = {}
        for file in sorted(files):
            with _Connection(file) as connection:
                if connection.port == self._port:
                    found.setdefault(network_of(connection.address), []).append(file)
        for network, theirs in found.items():
            ended = sum(self._end(file, network) for file in theirs[self._most :])
            if ended:
                self._refusals.tell("too many gRPC connections from one address", network, count=ended)

    def _end(self, file: int, network: str) -> bool:
        """Shut a connection down, unless its file has become another one meanwhile."""
        with _Connection(file) as connection:
            if connection.port != self._port or network_of(connection.address) != network:
                return False
            connection.shut_down()
            return True


class _Connection:
    """What an open file is connected to, read by a second file for it, so that the library's own is never touched.

    Attributes:
        port: Port on this side; 0 for what is no TCP connection.
        address: On the other side; empty likewise.
    """

    def __init__(self, file: int) -> None:
        self.port, self.address = 0, ""
        self._socket: socket.socket | None = None
        try:
            copy = os.dup(file)
        except OSError:
            return  # closed since
        try:
            self._socket = socket.socket(fileno=copy)
            if self._socket.family in {socket.AF_INET, socket.AF_INET6}:
                self.address = str(self._socket.getpeername()[0])
                self.port = int(self._socket.getsockname()[1])
        except OSError:
            if self._socket is None:
                os.close(copy)  # no socket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def shut_down(self) -> None:
        """End the connection in both directions, for all files of it."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

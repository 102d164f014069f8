"""A large file by several connections at once, handed out in order.

Servers and paths often limit each connection, not the client. Pieces come out in order, so that they can be hashed and
appended as they come and a broken download leaves a beginning of the file, never one with holes.

Files that are fetched side by side share lanes: threads, each of which fetches one piece at a time, and the memory that
pieces take.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Semaphore
from types import TracebackType
from typing import Self

import httpx2

from edgebuild.network import Stop

CONNECTIONS = 4
PIECE_BYTES = 8 << 20
# Smaller files come by one connection.
PIECES_FROM_BYTES = 64 << 20
# Pieces under way or waiting for their turn, all that is ever held in memory: of one file, and of all side by side.
_AHEAD, _AHEAD_IN_ALL = CONNECTIONS + 1, 2 * CONNECTIONS


class PieceError(Exception):
    """A server that answered a piece with something else.

    Attributes:
        status: The HTTP status; 200 when it sent the whole file.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What is fetched in pieces.

    Attributes:
        url: Where the file lies, after all redirects.
        headers: Gives what is sent with a request.
        begin: First byte wanted.
        end: The file's length in bytes.
        connect: Makes the client, whose connections end when the stop is set.
    """

    url: str
    headers: Callable[[], Mapping[str, str]]
    begin: int
    end: int
    connect: Callable[[Stop], httpx2.Client]


@dataclass(frozen=True, slots=True)
class _Piece:
    """What came of a piece, and why it was not all."""

    chunks: list[bytes]
    fault: Exception | None


class Lanes:
    """Threads and room for the pieces of one file, or of several side by side; closing them waits for what is under way.

    Room is taken before a piece is fetched and given back when its bytes are handed out. Whoever has none waits for it,
    and whoever waits has none, so that somebody always goes on.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="piece")
        self._room = Semaphore(_AHEAD_IN_ALL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown()

    def take_room(self, *, waits: bool) -> bool:
        """Take the room of a piece; False where there is none and one does not wait."""
        return self._room.acquire(blocking=waits)

    def give_room(self) -> None:
        """Give it back."""
        self._room.release()

    def fetch(self, spread: Spread, begin: int, *, client: httpx2.Client) -> "Future[_Piece]":
        """Fetch the piece that begins there, once a thread is free."""
        return self._threads.submit(_fetch, spread, begin, client=client)


def fetch_pieces(spread: Spread, *, lanes: Lanes, stop: Stop) -> Generator[bytes]:
    """Yield the bytes in order; what came of a piece before it broke is handed out before the fault.

    Closing it ends all of its connections at once.

    Args:
        spread: What is fetched.
        lanes: Fetch the pieces.
        stop: Ends the connections too.

    Raises:
        httpx2.TransportError: A connection broke, or was ended by `stop`.
        PieceError: The server answered with something else than the piece.
    """
    with stop.child() as own, spread.connect(own) as client:
        begins = deque(range(spread.begin, spread.end, PIECE_BYTES))
        ahead: deque[Future[_Piece]] = deque()

        def refill() -> None:
            while begins and len(ahead) < _AHEAD and lanes.take_room(waits=not ahead):
                ahead.append(lanes.fetch(spread, begins.popleft(), client=client))

        try:
            refill()
            while ahead:
                piece = ahead[0].result()
                yield from piece.chunks
                ahead.popleft()
                del piece.chunks[:]
                lanes.give_room()
                if piece.fault is not None:
                    raise piece.fault
                refill()
        finally:
            # Whoever waits for bytes that nobody wants any more is woken.
            if ahead:
                own.set()
                wait([future for future in ahead if not future.cancel()])
            for _ in ahead:
                lanes.give_room()


def _fetch(spread: Spread, begin: int, *, client: httpx2.Client) -> _Piece:
    chunks: list[bytes] = []
    try:
        for chunk in _stream(spread, begin, client=client):
            chunks.append(chunk)  # noqa: PERF402 - what came before a fault is kept
    except (httpx2.HTTPError, httpx2.StreamError, PieceError) as error:
        return _Piece(chunks, error)
    return _Piece(chunks, None)


def _stream(spread: Spread, begin: int, *, client: httpx2.Client) -> Iterator[bytes]:
    end = min(begin + PIECE_BYTES, spread.end)
    headers = {**spread.headers(), "Range": f"bytes={begin}-{end - 1}"}
    with client.stream("GET", spread.url, headers=headers) as response:
        if response.status_code != 206 or not starts_at(response, begin):
            raise PieceError(response.status_code)
        at = begin
        for chunk in response.iter_raw():
            at += len(chunk)
            yield chunk
    if at != end:
        raise httpx2.RemoteProtocolError(f"a part has {at - begin} bytes, not {end - begin}")


def starts_at(response: httpx2.Response, offset_bytes: int) -> bool:
    """Check that a partial answer begins where it was asked to; RFC 9110, 14.4."""
    return str(response.headers.get("content-range", "")).startswith(f"bytes {offset_bytes}-")

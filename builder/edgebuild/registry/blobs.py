"""A blob on its way from a registry: from a place on, in order, by one connection or several.

1. A connection that breaks is made again and goes on where it broke.
2. Of a large blob a small part is asked for first: it shows whether parts are given, and where the blob lies in the end.
3. The rest comes from there in pieces, by several connections at once. An address that is no longer good, and a token
   that is used up, are followed by another first part.
4. A registry that gives no parts is read by one connection.
"""

import re
from collections.abc import Generator, Iterator
from contextlib import closing

import httpx2

from edgebuild.network import FURTHER_BYTES
from edgebuild.oci.digest import Digest
from edgebuild.pieces import PIECES_FROM_BYTES, Lanes, PieceError, Spread, fetch_pieces
from edgebuild.registry.faults import TransientError, faults, lie
from edgebuild.registry.transport import Request, Transport

_FIRST_BYTES = 1 << 20


class BlobReading:
    """One blob that is being read."""

    def __init__(
        self,
        transport: Transport,
        digest: Digest,
        *,
        size_bytes: int | None,
        offset_bytes: int,
        upto_bytes: int | None,
        lanes: Lanes | None,
    ) -> None:
        """Make ready; nothing is asked yet. See `RegistryClient.stream_blob`."""
        self._transport = transport
        self._digest = digest
        self._call = transport.call("GET", f"blob {digest}")
        self._size_bytes = size_bytes
        self._at = offset_bytes
        limits = [limit for limit in (size_bytes, upto_bytes) if limit is not None]
        self._end = min(limits, default=None)
        self._is_whole = upto_bytes is None
        self._lanes = lanes

    def chunks(self) -> Generator[bytes]:
        """Yield what is wanted.

        Raises:
            RegistryError: It is not there, or the registry failed.
        """
        # Step 1.
        patience = self._transport.patience()
        reached = self._at
        while self._end is None or self._at < self._end:
            try:
                with closing(self._rest()) as chunks:
                    for chunk in chunks:
                        yield chunk
                        if self._at >= reached + FURTHER_BYTES:
                            reached = self._at
                            patience.progressed()
            except TransientError as fault:
                patience.wait(fault)
                continue
            if self._end is None or self._at >= self._end:
                break
            patience.wait(TransientError(f"{self._call}: it ended after {self._at} of {self._end} bytes"))

    def _rest(self) -> Generator[bytes]:
        """Yield what comes of the rest in one try."""
        lanes, end = self._lanes, self._end
        if lanes is None or end is None or end - self._at < PIECES_FROM_BYTES:
            yield from self._read(self._at, None if self._is_whole else end)
            return
        # Step 2.
        url = yield from self._read(self._at, self._at + _FIRST_BYTES)
        if url is not None:
            yield from self._pieces(url, end, lanes)

    def _read(self, begin: int, upto: int | None) -> Generator[bytes, None, httpx2.URL | None]:
        """Yield a part, or the rest where no parts are given; returns where a part came from."""
        with self._transport.open(self._request(begin, upto)) as response:
            is_part = response.status_code == 206
            # Step 4. One that answers with everything is left once there is enough, if no more is wanted.
            until = upto if is_part or not self._is_whole else None
            for chunk in _from(response, begin):
                wanted = chunk if until is None else chunk[: until - self._at]
                yield from self._counted(wanted)
                if self._at == until and (not is_part or len(wanted) < len(chunk)):
                    self._transport.closing.release(response)
                    break
            return response.url if is_part else None

    def _pieces(self, url: httpx2.URL, end: int, lanes: Lanes) -> Iterator[bytes]:
        # Step 3.
        transport, begin = self._transport, self._at
        spread = Spread(
            url=str(url),
            headers=lambda: transport.authorization(url),
            begin=begin,
            end=end,
            connect=transport.connect,
        )
        try:
            with (
                faults(self._call),
                closing(fetch_pieces(spread, lanes=lanes, stop=transport.closing)) as pieces,
            ):
                for chunk in pieces:
                    yield from self._counted(chunk)
        except PieceError as error:
            if self._at == begin:
                self._lanes = None
            raise TransientError(
                f"{self._call}: a part of it was answered with status {error.status}"
            ) from error

    def _counted(self, chunk: bytes) -> Iterator[bytes]:
        self._at += len(chunk)
        if self._size_bytes is not None and self._at > self._size_bytes:
            raise lie(self._call, f"it is {self._digest}", f"longer than its {self._size_bytes} bytes")
        yield chunk

    def _request(self, begin: int, upto: int | None) -> Request:
        is_part = begin > 0 or upto is not None
        last = "" if upto is None else upto - 1
        return self._transport.request(
            "GET",
            self._transport.url(f"blobs/{self._digest}"),
            f"blob {self._digest}",
            expect=(200, 206) if is_part else (200,),
            headers={"Range": f"bytes={begin}-{last}"} if is_part else {},
        )


def _from(response: httpx2.Response, offset_bytes: int) -> Iterator[bytes]:
    """Yield the body from `offset_bytes` of the blob on, whatever part of it the server sends."""
    skip = offset_bytes
    if response.status_code == 206:
        begin = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        skip = offset_bytes - int(begin[1]) if begin else -1
        if skip < 0:
            raise TransientError(f"a part of a blob came back from another place than byte {offset_bytes}")
    for chunk in response.iter_raw():
        if skip >= len(chunk):
            skip -= len(chunk)
            continue
        yield chunk[skip:]
        skip = 0

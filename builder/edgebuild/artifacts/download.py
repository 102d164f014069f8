"""Downloads: a file known by its sha256 comes into the store, checked while its bytes arrive.

1. Bytes go to a scratch file; when the connection breaks, the rest is asked for (RFC 9110, 14.2, Range).
2. A large file is asked for by several connections, if the server gives parts of files.
3. Only what may get better is tried again, until too many tries or too long a time pass without getting further.
"""

from collections.abc import Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import httpx2

from edgebuild.artifacts.arrival import Arrival, Expected, receive
from edgebuild.artifacts.store import Store
from edgebuild.artifacts.tries import (
    RETRYABLE_STATUSES,
    USUAL,
    GaveUpError,
    Patience,
    Tries,
    TryAgainError,
    reason_of,
)
from edgebuild.errors import ToolError
from edgebuild.network import FURTHER_BYTES, Stop, make_client, retry_after_s
from edgebuild.oci.digest import Digest
from edgebuild.pieces import PIECES_FROM_BYTES, Lanes, PieceError, Spread, fetch_pieces, starts_at
from edgebuild.progress import Progress, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What to do about a failed download, which depends on where the file's name came from.

    Attributes:
        away: The server cannot be reached, or fails again and again.
        gone: It has no such file.
        refused: It refuses for another reason.
        other: It serves other bytes.
    """

    away: str = "check the network, proxies and the mirror; what arrived is kept for the next try"
    gone: str = (
        "the mirror no longer has this version: resolve anew with --update-lock, or name a snapshot mirror"
    )
    refused: str = "check the mirror and what it asks for"
    other: str = "the mirror or a proxy serves another file under this name; use another mirror"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file to download.

    Attributes:
        url: Where it lies.
        file: The name it gets.
        digest: Its sha256.
        size_bytes: Its length, or 0 when unknown.
        title: For progress and messages, e.g. "ziglang 0.17.1".
        headers: Sent to the server of `url` alone, e.g. Authorization.
        hints: What to do when it fails.
        begun: A file on the store's disk that holds its beginning, which is taken away; or None.
    """

    url: str
    file: str
    digest: Digest
    size_bytes: int
    title: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    hints: Hints = Hints()
    begun: Path | None = None


def download(
    wanted: Wanted,
    *,
    store: Store,
    environment: Mapping[str, str],
    progress: Progress,
    patience: Patience = USUAL,
    stop: Stop | None = None,
    lanes: Lanes | None = None,
) -> Path:
    """Return the file's path in the store, fetching it if it is not there.

    Args:
        wanted: The file.
        store: Takes it.
        environment: For proxies and certificates.
        progress: Told of the bytes that arrive.
        patience: How long it is tried.
        stop: Ends the download soon after it is set.
        lanes: Fetch the pieces of a large file; None takes some of its own.

    Raises:
        ToolError: It cannot be had, or is not what was asked for.
        StoreError: The disk is full.
    """

    def fetch(arrival: Arrival, task: Task) -> None:
        with make_client(environment, stop=stop, idle_s=patience.idle_s) as client:
            transfer = _Transfer(wanted, arrival, task, client=client, environment=environment, lanes=lanes)
            transfer.run(patience, stop or Stop())

    def other(found: Digest) -> ToolError:
        return ToolError(
            f"{_place(wanted)} has sha256 {found.hex}, not {wanted.digest.hex}", hint=wanted.hints.other
        )

    return receive(
        Expected(
            digest=wanted.digest,
            file=wanted.file,
            size_bytes=wanted.size_bytes,
            title=wanted.title,
            begun=wanted.begun,
        ),
        store=store,
        progress=progress,
        fetch=fetch,
        other=other,
    )


class _Transfer:
    """One file on its way."""

    def __init__(
        self,
        wanted: Wanted,
        arrival: Arrival,
        task: Task,
        *,
        client: httpx2.Client,
        environment: Mapping[str, str],
        lanes: Lanes | None,
    ) -> None:
        self._wanted = wanted
        self._arrival = arrival
        self._client = client
        self._environment = environment
        self._lanes = lanes
        self._task = task
        self._gives_parts = True

    def run(self, patience: Patience, stop: Stop) -> None:
        """Fetch until the end of the file; step 3."""
        tries = Tries(patience, stop)
        while True:
            before_bytes = self._arrival.size_bytes
            try:
                self._fetch_rest(patience, stop)
            except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
                raise download_failure(self._wanted, str(error), hint=self._wanted.hints.refused) from error
            except (httpx2.TransportError, TryAgainError) as error:
                if self._arrival.size_bytes >= before_bytes + FURTHER_BYTES:
                    tries.progressed()
                self._task.status(f"{reason_of(error)}; trying again")
                try:
                    tries.wait(error)
                except GaveUpError as end:
                    raise download_failure(self._wanted, str(end), hint=self._wanted.hints.away) from error
                if stop.is_set():
                    self._end()
            else:
                return

    def _fetch_rest(self, patience: Patience, stop: Stop) -> None:
        have_bytes, limit = self._arrival.size_bytes, self._wanted.size_bytes
        if limit and have_bytes == limit:
            return
        headers = {**self._wanted.headers, "Accept-Encoding": "identity"}
        if have_bytes:
            headers["Range"] = f"bytes={have_bytes}-"
        with self._client.stream("GET", self._wanted.url, headers=headers) as response:
            if response.status_code == 416 and have_bytes:
                # The scratch file is as long as the file, or longer; its hash decides.
                return
            if response.status_code not in {200, 206}:
                refuse(self._wanted, response)
            if have_bytes and (response.status_code == 200 or not starts_at(response, have_bytes)):
                # A server without ranges sends everything again.
                self._arrival.restart()
                have_bytes = 0
            if response.status_code == 206 and not starts_at(response, have_bytes):
                raise TryAgainError("another part of the file came than was asked for")
            total_bytes = limit or _length(response, have_bytes)
            if total_bytes:
                self._task.resize(total_bytes)
            if not self._is_worth_pieces(response, total_bytes - have_bytes):
                self._write(response.iter_raw(), total_bytes, stop)
                return
            spread = self._spread(response, have_bytes, total_bytes, idle_s=patience.idle_s)
            # Step 2. The connection that showed the way is given up, with what little it has sent.
            stop.release(response)
        try:
            with (
                nullcontext(self._lanes) if self._lanes is not None else Lanes() as lanes,
                closing(fetch_pieces(spread, lanes=lanes, stop=stop)) as pieces,
            ):
                self._write(pieces, total_bytes, stop)
        except PieceError as error:
            # The address may have been good for a while only; the one that it came from gives another.
            self._gives_parts = self._arrival.size_bytes > have_bytes
            raise TryAgainError(f"a part of the file was answered with status {error.status}") from error

    def _is_worth_pieces(self, response: httpx2.Response, rest_bytes: int) -> bool:
        """Tell whether the rest is large and the server has shown, or says, that it gives parts of files."""
        parts = response.status_code == 206 or response.headers.get("accept-ranges", "").lower() == "bytes"
        return self._gives_parts and parts and rest_bytes >= PIECES_FROM_BYTES

    def _spread(self, response: httpx2.Response, begin: int, end: int, *, idle_s: float) -> Spread:
        is_ours = _origin(response.url) == _origin(httpx2.URL(self._wanted.url))
        headers = {**(self._wanted.headers if is_ours else {}), "Accept-Encoding": "identity"}
        return Spread(
            url=str(response.url),
            headers=lambda: headers,
            begin=begin,
            end=end,
            connect=lambda stop: make_client(self._environment, stop=stop, idle_s=idle_s),
        )

    def _write(self, chunks: Iterable[bytes], total_bytes: int, stop: Stop) -> None:
        arrival = self._arrival
        # As it arrives: what an iterator holds back to fill a chunk is lost when the connection breaks.
        for chunk in chunks:
            if self._wanted.size_bytes and arrival.size_bytes + len(chunk) > self._wanted.size_bytes:
                raise ToolError(
                    f"{_place(self._wanted)} is longer than the {self._wanted.size_bytes} bytes that it should have",
                    hint=self._wanted.hints.other,
                )
            arrival.write(chunk)
            if stop.is_set():
                self._end()
        if total_bytes and arrival.size_bytes < total_bytes:
            raise TryAgainError(f"the connection ended after {arrival.size_bytes} of {total_bytes} bytes")

    def _end(self) -> NoReturn:
        raise ToolError(f"the download of {_place(self._wanted)} was stopped", hint="what arrived is kept")


def refuse(wanted: Wanted, response: httpx2.Response) -> NoReturn:
    """Say what an answer other than the file means.

    Raises:
        TryAgainError: It may get better.
        ToolError: It does not.
    """
    reason = f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code in RETRYABLE_STATUSES:
        raise TryAgainError(reason, retry_after_s=retry_after_s(response.headers) or 0.0)
    is_gone = response.status_code in {404, 410}
    raise download_failure(wanted, reason, hint=wanted.hints.gone if is_gone else wanted.hints.refused)


def download_failure(wanted: Wanted, reason: str, *, hint: str) -> ToolError:
    """Make the error for a file that cannot be had."""
    return ToolError(f"{_place(wanted)} cannot be downloaded: {reason}", hint=hint)


def _length(response: httpx2.Response, start_bytes: int) -> int:
    text = response.headers.get("content-length", "")
    return start_bytes + int(text) if text.isdecimal() else 0


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _place(wanted: Wanted) -> str:
    """Name a file and its server, without a login that the address may hold."""
    url = httpx2.URL(wanted.url)
    return f"{wanted.file} from {url.host}"

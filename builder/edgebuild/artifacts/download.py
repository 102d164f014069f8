"""Downloads: a file known by its sha256 comes into the store, checked while its bytes arrive.

1. What is in the store is not fetched.
2. Bytes go to a scratch file; when the connection breaks, the rest is asked for (RFC 9110, 14.2, Range).
3. A large file is asked for by several connections, if the server gives parts of files.
4. Only what may get better is tried again, until too many tries or too long a time pass without a new byte.
5. A file whose hash is another is removed and tried once more from the start; a server that lies twice is named.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import httpx2

from edgebuild.artifacts.arrival import Arrival
from edgebuild.artifacts.pieces import PieceError, Spread, fetch_pieces, starts_at
from edgebuild.artifacts.store import Store
from edgebuild.errors import ToolError
from edgebuild.network import Stop, make_client, retry_after_s
from edgebuild.oci.digest import Digest
from edgebuild.progress import Progress, Task

PIECES_FROM_BYTES = 64 << 20
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a download is tried.

    Attributes:
        attempts: Tries without a new byte, at least 1.
        deadline_s: Seconds without a new byte, waits included, after which nothing is tried again.
        backoff_s: Seconds before the second try; doubled for each further one. A server's Retry-After may be longer.
        idle_s: Seconds without a byte after which a connection counts as dead.
    """

    attempts: int = 5
    deadline_s: float = 120.0
    backoff_s: float = 0.5
    idle_s: float = 60.0


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
    """

    url: str
    file: str
    digest: Digest
    size_bytes: int
    title: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    hints: Hints = Hints()


def download(
    wanted: Wanted,
    *,
    store: Store,
    environment: Mapping[str, str],
    progress: Progress,
    patience: Patience = Patience(),
    stop: Stop | None = None,
) -> Path:
    """Return the file's path in the store, fetching it if it is not there.

    Args:
        wanted: The file.
        store: Takes it.
        environment: For proxies and certificates.
        progress: Told of the bytes that arrive.
        patience: How long it is tried.
        stop: Ends the download soon after it is set.

    Raises:
        ToolError: It cannot be had, or is not what was asked for.
        StoreError: The disk is full.
    """
    # Step 1.
    if (found := store.find_download(wanted.digest, wanted.file)) is not None:
        return found

    def build(folder: Path) -> None:
        partial = store.scratch("partial") / wanted.digest.hex
        with (
            progress.task(f"download {wanted.title}", total_bytes=wanted.size_bytes or None) as task,
            make_client(environment, stop=stop, idle_s=patience.idle_s) as client,
        ):
            transfer = _Transfer(wanted, partial, task, client=client, environment=environment)
            transfer.run(patience, stop or Stop())
        partial.chmod(0o644)
        partial.rename(folder / wanted.file)

    entry = store.make("download", wanted.digest, build, hashed={wanted.file: wanted.digest})
    return store.find_download(wanted.digest, wanted.file) or entry / wanted.file


class _Transfer:
    """One file on its way."""

    def __init__(
        self,
        wanted: Wanted,
        partial: Path,
        task: Task,
        *,
        client: httpx2.Client,
        environment: Mapping[str, str],
    ) -> None:
        self._wanted = wanted
        self._partial = partial
        self._client = client
        self._environment = environment
        self._task = task
        self._gives_parts = True

    def run(self, patience: Patience, stop: Stop) -> None:
        for last in (False, True):
            with Arrival(self._partial, self._task) as arrival:
                self._fetch_all(arrival, patience, stop)
                found = arrival.digest
            if found == self._wanted.digest:
                return
            # Step 5. A scratch file of an earlier run may be broken, or a proxy may have cut and patched.
            self._partial.unlink()
            if last:
                raise ToolError(
                    f"{_place(self._wanted)} has sha256 {found.hex}, not {self._wanted.digest.hex}",
                    hint=self._wanted.hints.other,
                )

    def _fetch_all(self, arrival: Arrival, patience: Patience, stop: Stop) -> None:
        """Fetch until the end of the file; step 4."""
        failures, since_s = 0, time.monotonic()
        while True:
            before_bytes = arrival.size_bytes
            try:
                self._fetch_rest(arrival, patience, stop)
            except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
                raise ToolError(
                    f"{_place(self._wanted)} cannot be downloaded: {error}", hint=self._wanted.hints.refused
                ) from error
            except (httpx2.TransportError, _TryAgainError) as error:
                if stop.is_set():
                    self._end()
                if arrival.size_bytes > before_bytes:
                    failures, since_s = 0, time.monotonic()
                failures += 1
                wait_s = self._wait_s(error, failures, time.monotonic() - since_s, patience)
                self._task.status(f"{_reason(error)}; trying again")
                if stop.wait(wait_s):
                    self._end()
            else:
                return

    def _wait_s(self, error: Exception, failures: int, spent_s: float, patience: Patience) -> float:
        """Decide how long to wait before another try, or to give up."""
        asked_s = error.retry_after_s if isinstance(error, _TryAgainError) else 0.0
        wait_s: float = max(patience.backoff_s * 2 ** (failures - 1), asked_s)
        if failures < patience.attempts and spent_s + wait_s <= patience.deadline_s:
            return wait_s
        asked = f"asked to wait {asked_s:.0f} s, " if asked_s == wait_s else ""
        raise ToolError(
            f"{_place(self._wanted)} cannot be downloaded: {_reason(error)} ({asked}tried {failures} times without a new byte)",
            hint=self._wanted.hints.away,
        ) from error

    def _fetch_rest(self, arrival: Arrival, patience: Patience, stop: Stop) -> None:
        have_bytes, limit = arrival.size_bytes, self._wanted.size_bytes
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
                self._refuse(response)
            if have_bytes and (response.status_code == 200 or not starts_at(response, have_bytes)):
                # A server without ranges sends everything again.
                arrival.restart()
                have_bytes = 0
            if response.status_code == 206 and not starts_at(response, have_bytes):
                raise _TryAgainError("another part of the file came than was asked for")
            total_bytes = limit or _length(response, have_bytes)
            if not self._is_worth_pieces(response, total_bytes - have_bytes):
                self._write(response.iter_raw(), total_bytes, arrival, stop)
                return
            spread = self._spread(response, have_bytes, total_bytes, idle_s=patience.idle_s)
        # Step 3. The connection that showed the way is given up, with what little it has sent.
        try:
            self._write(
                fetch_pieces(spread, environment=self._environment, stop=stop), total_bytes, arrival, stop
            )
        except PieceError as error:
            # The address may have been good for a while only; the one that it came from gives another.
            self._gives_parts = error.status != 200
            raise _TryAgainError(f"a part of the file was answered with status {error.status}") from error

    def _is_worth_pieces(self, response: httpx2.Response, rest_bytes: int) -> bool:
        """Tell whether the rest is large and the server has shown, or says, that it gives parts of files."""
        parts = response.status_code == 206 or response.headers.get("accept-ranges", "").lower() == "bytes"
        return self._gives_parts and parts and rest_bytes >= PIECES_FROM_BYTES

    def _spread(self, response: httpx2.Response, begin: int, end: int, *, idle_s: float) -> Spread:
        is_ours = _origin(response.url) == _origin(httpx2.URL(self._wanted.url))
        headers = {**(self._wanted.headers if is_ours else {}), "Accept-Encoding": "identity"}
        return Spread(url=str(response.url), headers=headers, begin=begin, end=end, idle_s=idle_s)

    def _write(self, chunks: Iterable[bytes], total_bytes: int, arrival: Arrival, stop: Stop) -> None:
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
            raise _TryAgainError(f"the connection ended after {arrival.size_bytes} of {total_bytes} bytes")

    def _end(self) -> NoReturn:
        raise ToolError(f"the download of {_place(self._wanted)} was stopped", hint="what arrived is kept")

    def _refuse(self, response: httpx2.Response) -> NoReturn:
        reason = f"{response.status_code} {response.reason_phrase}".strip()
        if response.status_code in _RETRYABLE:
            raise _TryAgainError(reason, retry_after_s=retry_after_s(response.headers) or 0.0)
        hints = self._wanted.hints
        raise ToolError(
            f"{_place(self._wanted)} cannot be downloaded: {reason}",
            hint=hints.gone if response.status_code in {404, 410} else hints.refused,
        )


class _TryAgainError(Exception):
    """A failure that may pass.

    Attributes:
        retry_after_s: Seconds that the server asked to wait, or 0.
    """

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _length(response: httpx2.Response, start_bytes: int) -> int:
    text = response.headers.get("content-length", "")
    return start_bytes + int(text) if text.isdecimal() else 0


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _place(wanted: Wanted) -> str:
    """Name a file and its server, without a login that the address may hold."""
    url = httpx2.URL(wanted.url)
    return f"{wanted.file} from {url.host}"

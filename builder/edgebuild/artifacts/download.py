"""Downloads: a file known by its sha256 comes into the store, checked while its bytes arrive.

1. What is in the store is not fetched.
2. Bytes go to a scratch file; when the connection breaks, the rest is asked for (RFC 9110, 14.2, Range).
3. Only what may get better is tried again, until too many tries or too long a time pass without a new byte.
4. A file whose hash is another is removed and tried once more from the start; a mirror that lies twice is named.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx2

from edgebuild.artifacts.files import store_fault
from edgebuild.artifacts.store import Store
from edgebuild.errors import ToolError
from edgebuild.network import Stop, make_client
from edgebuild.oci.blob import CHUNK_BYTES
from edgebuild.oci.digest import Digest
from edgebuild.progress import Progress, Task

_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a download is tried.

    Attributes:
        attempts: Tries without a new byte, at least 1.
        deadline_s: Seconds without a new byte, waits included, after which nothing is tried again.
        backoff_s: Seconds before the second try; doubled for each further one.
    """

    attempts: int = 5
    deadline_s: float = 120.0
    backoff_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file to download.

    Attributes:
        url: Where it lies.
        file: The name it gets.
        digest: Its sha256.
        size_bytes: Its length, or 0 when unknown.
        title: For progress and messages, e.g. "ziglang 0.17.1".
    """

    url: str
    file: str
    digest: Digest
    size_bytes: int
    title: str


def download(
    wanted: Wanted,
    *,
    store: Store,
    environment: Mapping[str, str],
    progress: Progress,
    patience: Patience | None = None,
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
            make_client(environment, stop=stop) as client,
        ):
            _Transfer(wanted, partial, client, task, patience or Patience(), stop or Stop()).run()
        partial.chmod(0o644)
        partial.rename(folder / wanted.file)

    entry = store.make("download", wanted.digest, build)
    return store.find_download(wanted.digest, wanted.file) or entry / wanted.file


class _Transfer:
    """One file on its way."""

    def __init__(
        self,
        wanted: Wanted,
        partial: Path,
        client: httpx2.Client,
        task: Task,
        patience: Patience,
        stop: Stop,
    ) -> None:
        self._wanted = wanted
        self._partial = partial
        self._client = client
        self._task = task
        self._patience = patience
        self._stop = stop
        self._shown_bytes = 0

    def run(self) -> None:
        for last in (False, True):
            self._fetch_all()
            found = _hash(self._partial)
            if found == self._wanted.digest:
                return
            # Step 4. A scratch file of an earlier run may be broken, or a proxy may have cut and patched.
            self._partial.unlink()
            if last:
                raise ToolError(
                    f"{_place(self._wanted)} has sha256 {found.hex}, not {self._wanted.digest.hex}",
                    hint="the mirror or a proxy serves another file under this name; use another mirror",
                )

    def _fetch_all(self) -> None:
        """Fetch until the end of the file; step 3."""
        failures, since_s = 0, time.monotonic()
        while True:
            before_bytes = self._have_bytes()
            try:
                self._fetch_rest(before_bytes)
            except (httpx2.TransportError, _TryAgainError) as error:
                if self._stop.is_set():
                    self._end()
                if self._have_bytes() > before_bytes:
                    failures, since_s = 0, time.monotonic()
                failures += 1
                spent_s = time.monotonic() - since_s
                wait_s = self._patience.backoff_s * 2 ** (failures - 1)
                reason = str(error) or type(error).__name__
                if failures >= self._patience.attempts or spent_s + wait_s > self._patience.deadline_s:
                    raise ToolError(
                        f"{_place(self._wanted)} cannot be downloaded: {reason} (tried {failures} times without a new byte)",
                        hint="check the network, proxies and the mirror; what arrived is kept for the next try",
                    ) from error
                self._task.status(f"{reason}; trying again")
                if self._stop.wait(wait_s):
                    self._end()
            else:
                return

    def _fetch_rest(self, have_bytes: int) -> None:
        headers = {"Accept-Encoding": "identity"}
        if have_bytes:
            headers["Range"] = f"bytes={have_bytes}-"
        with self._client.stream("GET", self._wanted.url, headers=headers) as response:
            if response.status_code == 416 and have_bytes:
                # The scratch file is as long as the file, or longer; its hash decides.
                return
            if response.status_code not in {200, 206}:
                self._refuse(response)
            # A server without ranges sends everything again.
            append = response.status_code == 206 and _starts_at(response, have_bytes)
            self._write(response, have_bytes if append else 0)

    def _write(self, response: httpx2.Response, start_bytes: int) -> None:
        limit = self._wanted.size_bytes
        written = start_bytes
        self._show(written)
        try:
            with self._partial.open("ab" if start_bytes else "wb") as out:
                # As it arrives: what an iterator holds back to fill a chunk is lost when the connection breaks.
                for chunk in response.iter_raw():
                    written += len(chunk)
                    if limit and written > limit:
                        raise ToolError(
                            f"{_place(self._wanted)} is longer than the {limit} bytes of its index",
                            hint="the mirror serves another file under this name; use another mirror",
                        )
                    out.write(chunk)
                    self._show(written)
                    if self._stop.is_set():
                        self._end()
        except OSError as error:
            raise store_fault(self._partial.parent, error) from error
        expected = limit or _length(response, start_bytes)
        if expected and written < expected:
            raise _TryAgainError(f"the connection ended after {written} of {expected} bytes")

    def _end(self) -> NoReturn:
        raise ToolError(f"the download of {_place(self._wanted)} was stopped", hint="what arrived is kept")

    def _refuse(self, response: httpx2.Response) -> None:
        reason = f"{response.status_code} {response.reason_phrase}".strip()
        if response.status_code in _RETRYABLE:
            raise _TryAgainError(reason)
        gone = response.status_code in {404, 410}
        raise ToolError(
            f"{_place(self._wanted)} cannot be downloaded: {reason}",
            hint="the mirror no longer has this version: resolve anew with --update-lock, or name a snapshot mirror"
            if gone
            else "check the mirror and what it asks for",
        )

    def _have_bytes(self) -> int:
        try:
            return self._partial.stat().st_size
        except FileNotFoundError:
            return 0

    def _show(self, have_bytes: int) -> None:
        if have_bytes > self._shown_bytes:
            self._task.advance(have_bytes - self._shown_bytes)
            self._shown_bytes = have_bytes


class _TryAgainError(Exception):
    """A failure that may pass."""


def _starts_at(response: httpx2.Response, offset_bytes: int) -> bool:
    """Check that a partial answer begins where it was asked to; RFC 9110, 14.4."""
    return str(response.headers.get("content-range", "")).startswith(f"bytes {offset_bytes}-")


def _length(response: httpx2.Response, start_bytes: int) -> int:
    text = response.headers.get("content-length", "")
    return start_bytes + int(text) if text.isdecimal() else 0


def _hash(path: Path) -> Digest:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return Digest(state.hexdigest())


def _place(wanted: Wanted) -> str:
    """Name a file and its server, without a login that the address may hold."""
    url = httpx2.URL(wanted.url)
    return f"{wanted.file} from {url.host}"

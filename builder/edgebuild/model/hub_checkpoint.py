"""Hugging Face checkpoints of a hub: what is small comes first and is judged, then the weights, several files at once."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx2

from edgebuild.artifacts.download import download
from edgebuild.artifacts.side_by_side import fetch_side_by_side
from edgebuild.artifacts.store import Store
from edgebuild.artifacts.tries import RETRYABLE_STATUSES, GaveUpError, Patience, Tries, TryAgainError
from edgebuild.errors import ModelError, ToolError
from edgebuild.host import Host
from edgebuild.model.checkpoint import (
    CONFIG,
    INDEX,
    SETTINGS_MAX_BYTES,
    find_checkpoint,
    read_index,
    read_quantization,
)
from edgebuild.model.converter import Checkpoint, convert
from edgebuild.model.fetched import Fetched
from edgebuild.model.hub_api import Hub, HubFile, Listing
from edgebuild.model.reference import HubReference
from edgebuild.network import Stop, make_client, retry_after_s
from edgebuild.oci.digest import Digest
from edgebuild.pieces import Lanes
from edgebuild.plan import ModelSource
from edgebuild.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class _Here:
    """A file that has been fetched."""

    path: Path
    digest: Digest


def convert_repository(
    hub: Hub,
    asked: HubReference,
    listing: Listing,
    *,
    host: Host,
    store: Store,
    progress: Progress,
    may_set_up: bool,
    patience: Patience,
) -> Fetched:
    """Fetch the checkpoint of a repository and convert it; what was converted before needs no weights.

    1. Settings are fetched and judged: what the converter cannot read is refused before its weights come.
    2. The weights are known by their sha256, which the hub tells: the store may have what becomes of them.
    3. Else they are fetched, several at once, and go on where an earlier run stopped.

    Args:
        hub: The hub.
        asked: What the user wrote.
        listing: What it means: a commit, and what that holds.
        host: This machine.
        store: Takes the files and the result.
        progress: Told of both.
        may_set_up: Whether what converting needs may be fetched.
        patience: How long the hub is asked.

    Raises:
        ModelError: It is no usable checkpoint.
        ToolError: The hub refuses, fails or lies, or the converter failed.
        StoreError: The disk is full.
    """
    place = str(asked)
    pinned = HubReference(repository=asked.repository, revision=listing.commit)
    files = {file.path: file for file in listing.files if "/" not in file.path}
    desk = _Desk(hub, pinned, host=host, store=store, progress=progress, patience=patience)
    # Step 1.
    found = find_checkpoint(files, place=place)
    for name in found.settings:
        if files[name].size_bytes > SETTINGS_MAX_BYTES:
            raise ModelError(
                f"{place}: {name} is too large for a model's settings", hint="take another revision"
            )
    config = desk.fetch_all([files[CONFIG]])[CONFIG]
    quantization = read_quantization(config.path.read_bytes(), files, place=place)
    settings = desk.fetch_all(files[name] for name in found.settings)
    weights = found.weights
    if found.has_index:
        weights = read_index(settings[INDEX].path.read_bytes(), files, place=place)
    # Step 2.
    digests = {name: here.digest for name, here in settings.items()}
    for name in weights:
        if not files[name].sha256:
            raise ModelError(
                f"{place}: {name} is kept in git, so the hub tells no sha256 of it",
                hint="fetch the repository yourself and give its folder",
            )
        digests[name] = Digest(files[name].sha256)
    size_bytes = sum(files[name].size_bytes for name in weights)
    progress.note(
        f"{asked}: converting the checkpoint of commit {listing.commit}, {size_bytes / 1e6:.0f} MB of weights"
    )
    checkpoint = Checkpoint(
        name=pinned.repository.partition("/")[2],
        place=place,
        settings={name: here.path for name, here in settings.items()},
        digests=digests,
        quantization=quantization,
        is_here=False,
        # Step 3.
        fetch=lambda: {
            name: here.path for name, here in desk.fetch_all(files[name] for name in weights).items()
        },
        # All of them are entries of the store, compared as they came.
        verify=lambda: None,
        source=ModelSource(
            kind="huggingface",
            reference=str(pinned),
            revision=listing.commit,
            file=INDEX if found.has_index else weights[0],
            licence=listing.licence,
        ),
    )
    return convert(checkpoint, host=host, store=store, progress=progress, may_set_up=may_set_up)


class _Desk:
    """Fetches files of one commit."""

    def __init__(
        self,
        hub: Hub,
        pinned: HubReference,
        *,
        host: Host,
        store: Store,
        progress: Progress,
        patience: Patience,
    ) -> None:
        self._hub = hub
        self._pinned = pinned
        self._host = host
        self._store = store
        self._progress = progress
        self._patience = patience

    def fetch_all(self, files: Iterable[HubFile]) -> dict[str, _Here]:
        """Fetch what the store lacks, a few at a time, and return all by name.

        Raises:
            ToolError: One cannot be had, or is not what the hub says it is.
            StoreError: The disk is full.
        """
        wanted = tuple(files)
        with closing(Stop()) as stop:
            here = fetch_side_by_side(wanted, lambda file, lanes: self._fetch(file, stop, lanes), stop=stop)
        return {file.path: one for file, one in zip(wanted, here, strict=True)}

    def _fetch(self, file: HubFile, stop: Stop, lanes: Lanes) -> _Here:
        if not file.sha256:
            return self._fetch_blob(file, stop)
        path = download(
            self._hub.wanted(self._pinned, file, name=file.path),
            store=self._store,
            environment=self._host.environment,
            progress=self._progress,
            patience=self._patience,
            stop=stop,
            lanes=lanes,
        )
        return _Here(path=path, digest=Digest(file.sha256))

    def _fetch_blob(self, file: HubFile, stop: Stop) -> _Here:
        """Fetch a small file that the hub keeps in git, which names it by a hash of its own."""
        note = f"git-{file.blob_id}.txt"
        if (known := self._store.recall(note)) is not None and len(known) == 64:
            digest = Digest(known.decode("ascii", "replace"))
            path = self._store.find_download(digest, file.path)
            if path is not None and _blob_id(path.read_bytes()) == file.blob_id:
                return _Here(path=path, digest=digest)
        content = self._read(file, stop)
        digest = Digest.of(content)
        entry = self._store.make("download", digest, _writer(file.path, content), hashed={file.path: digest})
        self._store.remember(note, digest.hex.encode())
        return _Here(path=self._store.find_download(digest, file.path) or entry / file.path, digest=digest)

    def _read(self, file: HubFile, stop: Stop) -> bytes:
        """Read a small file whole; a broken connection is made again."""
        hints = self._hub.hints(self._pinned)
        title = f"{file.path} of hf://{self._pinned.repository}"
        tries = Tries(self._patience, stop)
        url = self._hub.url(self._pinned, file.path, self._pinned.revision)
        with make_client(self._host.environment, stop=stop, idle_s=self._patience.idle_s) as client:
            while True:
                try:
                    return self._verified(self._read_once(client, url, title), file, title)
                except (httpx2.TransportError, TryAgainError) as error:
                    try:
                        tries.wait(error)
                    except GaveUpError as end:
                        raise ToolError(f"{title} cannot be downloaded: {end}", hint=hints.away) from error
                    if stop.is_set():
                        raise ToolError(f"the download of {title} was stopped", hint=hints.away) from error

    def _verified(self, content: bytes, file: HubFile, title: str) -> bytes:
        if _blob_id(content) != file.blob_id:
            hints = self._hub.hints(self._pinned)
            raise ToolError(f"{title} is not what the hub's listing names", hint=hints.other)
        return content

    def _read_once(self, client: httpx2.Client, url: str, title: str) -> bytes:
        content = bytearray()
        with client.stream("GET", url, headers=self._hub.headers) as response:
            reason = f"{response.status_code} {response.reason_phrase}".strip()
            if response.status_code in RETRYABLE_STATUSES:
                raise TryAgainError(reason, retry_after_s=retry_after_s(response.headers) or 0.0)
            hints = self._hub.hints(self._pinned)
            if response.status_code != 200:
                hint = hints.gone if response.status_code in {404, 410} else hints.refused
                raise ToolError(f"{title} cannot be downloaded: {reason}", hint=hint)
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > SETTINGS_MAX_BYTES:
                    raise ToolError(f"{title} does not end", hint=hints.other)
        return bytes(content)


def _blob_id(content: bytes) -> str:
    """Name content as git does: sha1 of a header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _writer(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write

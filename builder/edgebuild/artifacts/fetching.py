"""Fetches inputs from this host's Debian mirrors and package index, which are looked up once."""

import threading
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from edgebuild.artifacts.debian import Archive, find_archives
from edgebuild.artifacts.download import Wanted, download
from edgebuild.artifacts.pypi import find_file, find_index_urls
from edgebuild.artifacts.side_by_side import fetch_side_by_side
from edgebuild.artifacts.store import Store
from edgebuild.errors import ToolError
from edgebuild.host import Host
from edgebuild.lock import LockedInput
from edgebuild.network import Stop, make_client
from edgebuild.oci.digest import Digest
from edgebuild.pieces import Lanes
from edgebuild.progress import Progress

SUITE = "trixie"


class Fetcher:
    """Brings inputs into the store, a few at a time."""

    def __init__(self, *, host: Host, store: Store, progress: Progress, mirrors: tuple[str, ...]) -> None:
        """Make ready; nothing is asked yet.

        Args:
            host: Its apt, pip and uv are asked for mirrors and indexes.
            store: Takes the files.
            progress: Told of each download.
            mirrors: Debian mirrors given by the user; see `find_archives`.
        """
        self._host = host
        self._store = store
        self._progress = progress
        self._mirrors = mirrors
        self._guard = threading.Lock()
        self._archives: tuple[Archive, ...] = ()
        self._indexes: tuple[str, ...] = ()

    def fetch_all(self, items: tuple[LockedInput, ...]) -> tuple[Path, ...]:
        """Return the inputs' paths in the store, in the same order, fetching what is missing, a few at a time.

        Raises:
            ToolError: One cannot be had.
            StoreError: The disk is full.
        """
        with closing(Stop()) as stop:
            return fetch_side_by_side(items, lambda item, lanes: self._fetch(item, stop, lanes), stop=stop)

    def _fetch(self, item: LockedInput, stop: Stop, lanes: Lanes) -> Path:
        digest = Digest(item.sha256)
        if (found := self._store.find_download(digest, item.file)) is not None:
            return found
        url, environment = self._deb(item) if item.kind == "deb" else self._index_file(item, stop)
        wanted = Wanted(
            url=url,
            file=item.file,
            digest=digest,
            size_bytes=item.size_bytes,
            title=f"{item.name} {item.version}",
        )
        return download(
            wanted,
            store=self._store,
            environment=environment,
            progress=self._progress,
            stop=stop,
            lanes=lanes,
        )

    def _deb(self, item: LockedInput) -> tuple[str, dict[str, str]]:
        with self._guard:
            if not self._archives:
                self._archives = find_archives(SUITE, host=self._host, mirrors=self._mirrors)
        archive = next((found for found in self._archives if found.name == item.archive), None)
        if archive is None:
            raise ToolError(
                f"{item.file} comes from Debian's {item.archive} archive, of which this host knows no mirror",
                hint="name both mirrors: --mirror MAIN --mirror SECURITY",
            )
        environment = dict(self._host.environment)
        if archive.proxy:
            environment |= {"http_proxy": archive.proxy, "https_proxy": archive.proxy}
        return f"{archive.url}/{quote(item.path)}", environment

    def _index_file(self, item: LockedInput, stop: Stop) -> tuple[str, dict[str, str]]:
        with self._guard:
            if not self._indexes:
                self._indexes = find_index_urls(self._host)
        with make_client(self._host.environment, stop=stop) as client:
            found = find_file(
                item.name, file=item.file, sha256=item.sha256, urls=self._indexes, client=client
            )
        return found.url, dict(self._host.environment)

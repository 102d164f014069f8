"""GGUF files behind addresses, those of a hub or the web: their beginnings, and all of them."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from edgebuild.artifacts.beginning import fetch_beginning
from edgebuild.artifacts.download import Wanted, download
from edgebuild.artifacts.side_by_side import fetch_side_by_side
from edgebuild.artifacts.store import Store
from edgebuild.artifacts.tries import USUAL, Patience
from edgebuild.host import Host
from edgebuild.model.fetched import Fetched
from edgebuild.model.found import Found, RemoteFile
from edgebuild.network import Stop
from edgebuild.oci.digest import Digest
from edgebuild.plan import ModelSource
from edgebuild.progress import Progress


def found_at_addresses(
    files: tuple[Wanted, ...],
    source: ModelSource,
    *,
    host: Host,
    store: Store,
    progress: Progress,
    patience: Patience = USUAL,
) -> Found:
    """Describe a model behind addresses.

    Args:
        files: Its GGUF files, in order.
        source: Where it comes from.
        host: Its environment has proxies and certificates.
        store: Takes the files.
        progress: Told of the bytes.
        patience: How long servers are asked.
    """

    def extend(file: Wanted) -> Callable[[Path, int], int | None]:
        return lambda into, upto: fetch_beginning(
            file, into, upto=upto, environment=host.environment, patience=patience
        )

    def fetch(begun: Mapping[Digest, Path]) -> Fetched:
        with closing(Stop()) as stop:
            path, *more = fetch_side_by_side(
                files,
                lambda file, lanes: download(
                    replace(file, begun=begun.get(file.digest)),
                    store=store,
                    environment=host.environment,
                    progress=progress,
                    patience=patience,
                    stop=stop,
                    lanes=lanes,
                ),
                stop=stop,
            )
        return Fetched(path=path, more=tuple(more), source=source)

    return Found(
        place=source.reference,
        fetch=fetch,
        files=tuple(RemoteFile(name=file.file, digest=file.digest, extend=extend(file)) for file in files),
        licence=lambda: source.licence,
    )

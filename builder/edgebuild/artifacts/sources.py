"""Where recipes and their inputs come from: edgebuild's own folder, the store, and else the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.artifacts.recipe_file import Recipe, load_recipe, recipe_names
from edgebuild.artifacts.store import Store
from edgebuild.data import data_path
from edgebuild.host import Host
from edgebuild.lock import LockedInput
from edgebuild.oci.digest import Digest
from edgebuild.progress import Progress

if TYPE_CHECKING:
    from edgebuild.artifacts.fetching import Fetcher


class Sources:
    """Recipes, read once, and their inputs by hash: from the store, or fetched when they are missing."""

    def __init__(
        self,
        *,
        host: Host,
        store: Store,
        progress: Progress,
        mirrors: tuple[str, ...] = (),
        images: Path | None = None,
    ) -> None:
        """Make ready; nothing is asked yet.

        Args:
            host: Its apt, pip and uv are asked for mirrors and indexes.
            store: Takes the files.
            progress: Told of each download.
            mirrors: Debian mirrors given by the user; see `find_archives`.
            images: Folder of recipes; None takes edgebuild's own.
        """
        self.images = images or data_path("images")
        self.mirrors = mirrors
        self._host = host
        self._store = store
        self._progress = progress
        self._fetcher: Fetcher | None = None
        self._recipes: dict[str, Recipe] = {}

    def recipe(self, name: str) -> Recipe:
        """Return a recipe as it was when it was first asked for.

        Raises:
            ToolError: There is none of this name, or its file is broken.
        """
        if name not in self._recipes:
            self._recipes[name] = load_recipe(self.images, name)
        return self._recipes[name]

    def recipes(self) -> tuple[Recipe, ...]:
        """Return all recipes, sorted by name.

        Raises:
            ToolError: One of them is broken.
        """
        return tuple(self.recipe(name) for name in recipe_names(self.images))

    def has(self, item: LockedInput) -> bool:
        """Say whether an input is in the store."""
        return self._store.find_download(Digest(item.sha256), item.file) is not None

    def fetch_all(self, items: tuple[LockedInput, ...]) -> tuple[Path, ...]:
        """Return the inputs' paths in the store, in the same order, fetching what is missing.

        Raises:
            ToolError: One cannot be had.
            StoreError: The disk is full.
        """
        found = tuple(self._store.find_download(Digest(item.sha256), item.file) for item in items)
        if all(path is not None for path in found):
            return tuple(path for path in found if path is not None)
        if self._fetcher is None:
            # Only here is the network met: the HTTP client is slow to import, and most builds do without.
            from edgebuild.artifacts.fetching import Fetcher  # noqa: PLC0415

            self._fetcher = Fetcher(
                host=self._host, store=self._store, progress=self._progress, mirrors=self.mirrors
            )
        return self._fetcher.fetch_all(items)

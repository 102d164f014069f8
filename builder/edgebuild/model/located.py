"""A model that was found but not fetched: its files, and where they come from."""

from dataclasses import dataclass

from edgebuild.artifacts.download import Wanted
from edgebuild.plan import ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A model behind addresses.

    Attributes:
        files: Its GGUF files, in order; none of a checkpoint, which is converted first.
        source: Where it comes from.
    """

    files: tuple[Wanted, ...]
    source: ModelSource

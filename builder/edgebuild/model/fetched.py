"""What every source hands over: GGUF files on this machine, and where they came from."""

from dataclasses import dataclass
from pathlib import Path

from edgebuild.plan import ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A model that has been fetched.

    Attributes:
        path: Absolute path of its GGUF file; in the store the name may be another than in the source.
        source: Where it came from.
        more: Of a model in several files, the others in order.
    """

    path: Path
    source: ModelSource
    more: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All of its files, in order."""
        return (self.path, *self.more)

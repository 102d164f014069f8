"""What every source hands over: one GGUF file on this machine, and where it came from."""

from dataclasses import dataclass
from pathlib import Path

from edgebuild.plan import ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A GGUF file that has been fetched.

    Attributes:
        path: Absolute path; in the store the name may be another than in the source.
        source: Where it came from.
    """

    path: Path
    source: ModelSource

"""What every source finds: a model that is fetched when it is wanted, and whose header may be had before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebuild.model.fetched import Fetched
from edgebuild.oci.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A GGUF file that lies elsewhere.

    Attributes:
        name: Its name.
        digest: Its sha256.
        extend: Appends to a file what it lacks of the first so many bytes; returns the whole size, or None if unknown.
    """

    name: str
    digest: Digest
    extend: Callable[[Path, int], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model that was found and not fetched.

    Attributes:
        place: Where it lies, for messages: as a source is recorded.
        fetch: Fetches it. Beginnings of files that came before, by digest, are taken over.
        files: Its files, in order; empty where all of it is here, or has to be before a header can be read.
        licence: Gives the licence as the source states it, or ""; may ask the source.
        reason: Why no header can be read before all of it is here; "" where it can, or is here.
    """

    place: str
    fetch: Callable[[Mapping[Digest, Path]], Fetched]
    files: tuple[RemoteFile, ...] = ()
    licence: Callable[[], str] = lambda: ""
    reason: str = ""

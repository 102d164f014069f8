"""A memory of digests of files outside the store, each bound to what the file system said of the file then."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from edgebuild.artifacts.files import foreign_stamp, write_atomically
from edgebuild.canonical import canonical_json
from edgebuild.oci.digest import Digest


class DigestMemory:
    """A folder of small files, one for each file and tag."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it is made when the first digest is remembered."""
        self._folder = folder

    def known(self, path: Path, tag: str) -> Digest | None:
        """Return the digest remembered for a file, if it has not changed since.

        Args:
            path: The file.
            tag: What was hashed: the file itself or something made of it.
        """
        try:
            document = json.loads(self._place(path, tag).read_bytes())
            stamp = foreign_stamp(path)
            return Digest(document["digest"]) if document["stamp"] == stamp else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def remember(self, path: Path, tag: str, digest: Digest) -> None:
        """Remember the digest of a file as it is now. What cannot be written is forgotten."""
        with suppress(OSError):
            place = self._place(path, tag)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, canonical_json({"digest": digest.hex, "stamp": foreign_stamp(path)}))

    def _place(self, path: Path, tag: str) -> Path:
        name = hashlib.sha256(f"{path.absolute()}\0{tag}".encode(errors="surrogateescape")).hexdigest()
        return self._folder / f"{name}.json"

"""The seal of `model_check: first_start`: which bytes were checked, told apart by what changes when a file does.

It lies in the state volume, and says no more than that nothing has written to the file since: whoever can write to the
volume can forge it, and bits that rot below the file system do not show.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

_NAME: Final = "model-seal.json"
_VERSION: Final = 1


class SealBook:
    """The seals of one state folder; one that cannot be read is none."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _NAME
        self._seals = self._read()

    def _read(self) -> dict[str, object]:
        try:
            document = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(document, dict) or document.get("schema_version") != _VERSION:
            return {}
        seals = document.get("files")
        return seals if isinstance(seals, dict) else {}

    def holds(self, path: str, state: os.stat_result, digest: str) -> bool:
        """Say whether this very file was checked against this digest."""
        return self._seals.get(path) == _seal(state, digest)

    def add(self, path: str, state: os.stat_result, digest: str) -> None:
        """Remember that the file was checked; a power failure meanwhile costs one more check at most.

        Raises:
            OSError: The folder cannot be written.
        """
        self._seals[path] = _seal(state, digest)
        document = {"schema_version": _VERSION, "files": self._seals}
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        temporary.replace(self._path)


def _seal(state: os.stat_result, digest: str) -> dict[str, object]:
    return {
        "size_bytes": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ctime_ns": state.st_ctime_ns,
        "inode": state.st_ino,
        "digest": digest,
    }

"""Opens everything that access hangs on, once at start, from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeserve.access.door import Door
from edgeserve.access.keys import KeyRing, load_keys
from edgeserve.access.watched import AccessError, Watched
from edgeserve.log import Log
from edgeserve.settings import KEYS_FILE, AccessSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What guards the server; the same for every interface."""

    door: Door
    keys: Watched[KeyRing] | None

    @property
    def watched(self) -> tuple[Watched[Any], ...]:
        """What is to be looked at again while the server runs."""
        return tuple(one for one in (self.keys,) if one is not None)


def open_access(settings: AccessSettings, log: Log) -> Access:
    """Read what is mounted.

    Raises:
        AccessError: Something that is there cannot be used, or something required is not there.
    """
    keys = _open_keys(settings.keys_file, log)
    if settings.require_key and keys is None:
        raise AccessError(
            f"server.access.require_key is on, and there are no keys: mount a folder with {settings.keys_file or KEYS_FILE}"
        )
    return Access(door=Door(keys, requires_key=settings.require_key), keys=keys)


def _open_keys(path: str, log: Log) -> Watched[KeyRing] | None:
    """Open the keys unless none are wanted; half a mount, a folder without its file, is a fault and never an open door."""
    if not path or (path == KEYS_FILE and not Path(path).parent.is_dir()):
        return None
    return Watched("keys", (path,), lambda: load_keys(path), log=log)

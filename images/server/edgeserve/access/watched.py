"""Values made from files that change while the server runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from edgeserve.log import Log

_INTERVAL_S: Final = 2.0

_T = TypeVar("_T")
# Of one file: (device, inode, size, time of content in ns); None while it is not there.
_Signature = tuple[tuple[int, int, int, int] | None, ...]


class AccessError(Exception):
    """Keys or certificates cannot be used; the message says which file and what to do, on one line."""


class Watched(Generic[_T]):
    """A value made from files, made anew when they change; a broken new version leaves the old one in force."""

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        make: Callable[[], _T],
        *,
        log: Log,
        is_worn: Callable[[_T], bool] = lambda _value: False,
    ) -> None:
        """Make the value for the first time.

        Args:
            name: What it is, for the log.
            paths: The files; one that is missing may come later.
            make: Reads them.
            log: Where changes are told.
            is_worn: Whether a value should be made anew though the files have not changed.

        Raises:
            AccessError: From `make`.
        """
        self._name = name
        self._paths = tuple(paths)
        self._make = make
        self._log = log
        self._is_worn = is_worn
        self._seen = self._signature()
        self.value = make()

    def refresh(self, *, is_forced: bool = False) -> None:
        """Make the value anew if a file has changed, or in any case; says so in one line, whatever came of it."""
        seen = self._signature()
        if seen != self._seen:
            reason = "changed"
        elif is_forced:
            reason = "asked"
        elif self._is_worn(self.value):
            reason = "worn"
        else:
            return
        self._seen = seen
        try:
            value = self._make()
        except AccessError as error:
            self._log.error(
                f"{self._name}-not-reloaded", problem=str(error), note="the old ones stay in force"
            )
            return
        if self._signature() != seen:
            # Replaced while being read: what was read may be half old, half new. The next look reads it again.
            self._seen = ()
            return
        self.value = value
        self._log.info(f"{self._name}-reloaded", reason=reason)

    def _signature(self) -> _Signature:
        return tuple(map(_stamp, self._paths))


def _stamp(path: str) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - follows the links that orchestrators swap
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def refresh_forever(watched: Sequence[Watched[object]]) -> None:
    """Look at the files every other second; a few stat calls, cheap enough for the event loop."""
    while watched:
        await asyncio.sleep(_INTERVAL_S)
        for one in watched:
            one.refresh()


def read_file(path: str, *, longest_bytes: int) -> bytes:
    """Read a whole small file.

    Raises:
        AccessError: It is missing, unreadable or too long.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            data = file.read(longest_bytes + 1)
    except FileNotFoundError:
        raise AccessError(f"{path}: there is no such file") from None
    except PermissionError:
        raise AccessError(f"{path}: not readable by user {os.getuid()}, as which the server runs") from None
    except OSError as error:
        raise AccessError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > longest_bytes:
        raise AccessError(f"{path}: longer than {longest_bytes} bytes")
    return data

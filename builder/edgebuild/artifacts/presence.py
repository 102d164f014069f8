"""Who uses the store: every process that takes something from it keeps a locked file in it while it lives.

The file's time is when the process began. Whatever it has taken was used since then, so that pruning spares all that
was used since the oldest living process began. The lock ends with the process, however it ends.
"""

import os
import tempfile
import threading
import weakref
from contextlib import suppress
from pathlib import Path

from edgebuild.artifacts.locks import lock_at_once, try_locked


class Presence:
    """One user of the store: nothing until it is announced, once."""

    def __init__(self, folder: Path) -> None:
        """Name the folder of such files; it is made when the first is."""
        self._folder = folder
        self._guard = threading.Lock()
        self._own: Path | None = None

    def announce(self) -> None:
        """Be there from now on.

        Raises:
            OSError: The file cannot be written.
        """
        with self._guard:
            if self._own is not None:
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f"{os.getpid()}-", dir=self._folder)
            lock_at_once(descriptor)
            self._own = Path(name)
            weakref.finalize(self, _leave, descriptor, self._own)

    def others_since_ns(self) -> int | None:
        """Return when the oldest other living user began, in nanoseconds since 1970; None when there is none.

        Files that dead ones left are removed.
        """
        began = []
        for path in self._folder.glob("*"):
            if path == self._own:
                continue
            with suppress(FileNotFoundError):
                since_ns = path.stat().st_mtime_ns
                with try_locked(path) as dead:
                    if dead:
                        path.unlink()
                    else:
                        began.append(since_ns)
        return min(began, default=None)


def _leave(descriptor: int, path: Path) -> None:
    # An interrupt has nothing to end any more, and cannot be raised out of a finalizer: Python would print where it was.
    with suppress(OSError, KeyboardInterrupt):
        path.unlink()
    os.close(descriptor)

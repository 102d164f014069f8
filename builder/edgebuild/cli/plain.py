"""Progress where there is no terminal: plain lines on standard error."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from edgebuild.progress import Task

# Shorter and smaller work is not worth a line.
TOLD_FROM_S = 0.5
_TOLD_FROM_BYTES = 1_000_000
_INTERVAL_S = 15.0


class PlainProgress:
    """One line when work ends, and one now and then while it lasts: for logs and CI."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def task(self, title: str, *, total_bytes: int | None = None) -> Iterator[Task]:
        """Tell the end of the work, and how far it is every quarter of a minute."""
        begin = time.monotonic()
        task = _PlainTask(self._write, title, total_bytes)
        yield task
        if time.monotonic() - begin >= TOLD_FROM_S or task.total_bytes >= _TOLD_FROM_BYTES:
            size = f" {task.total_bytes / 1e6:.1f} MB" if task.total_bytes else ""
            self._write(f"{title}:{size} {seconds_since(begin)}")

    def note(self, text: str) -> None:
        """Tell one line."""
        self._write(text)

    def _write(self, text: str) -> None:
        # Nobody may be there to read; the work goes on.
        with self._lock, suppress(OSError):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


class _PlainTask:
    def __init__(self, write: Callable[[str], None], title: str, total_bytes: int | None) -> None:
        self.total_bytes = total_bytes or 0
        self._write = write
        self._title = title
        self._done_bytes = 0
        self._began = self._told = time.monotonic()

    def advance(self, count_bytes: int) -> None:
        self._done_bytes += count_bytes
        of_all = f" of {self.total_bytes / 1e6:.1f}" if self.total_bytes else ""
        rate = self._done_bytes / 1e6 / max(time.monotonic() - self._began, 0.001)
        self._tell(f"{self._done_bytes / 1e6:.1f}{of_all} MB, {rate:.1f} MB/s")

    def resize(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes

    def status(self, text: str) -> None:
        self._tell(text)

    def _tell(self, text: str) -> None:
        now = time.monotonic()
        if now - self._told >= _INTERVAL_S:
            self._told = now
            self._write(f"{self._title}: {text}")


def seconds_since(begin: float) -> str:
    """Say how long it is since a moment of the monotonic clock, for people."""
    return f"{time.monotonic() - begin:.1f} s"

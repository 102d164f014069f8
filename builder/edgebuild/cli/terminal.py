"""Drawing progress: bars on a terminal, plain lines elsewhere. Both write to standard error."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.progress import Task as BarTask
from rich.text import Text

from edgebuild.progress import Task

_PLAIN_INTERVAL_S = 15.0
# Shorter and smaller work is not worth a line.
_TOLD_FROM_S = 0.5
_TOLD_FROM_BYTES = 1_000_000


class RichProgress:
    """Bars with bytes, rate and time left; a line stays of what took long enough to notice."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._lock = threading.Lock()
        self._open = 0
        self._bars: Bars | None = None

    @contextmanager
    def task(self, title: str, *, total_bytes: int | None = None) -> Iterator[Task]:
        """Show a bar (or a spinner without a total) while the work lasts."""
        bars = self._acquire()
        begin = time.monotonic()
        bar = bars.add_task(title, total=total_bytes, words="")
        try:
            yield _Bar(bars, bar)
        except BaseException:
            bars.remove_task(bar)
            self._release()
            raise
        bars.remove_task(bar)
        if time.monotonic() - begin >= _TOLD_FROM_S:
            bars.console.print(f"[green]✓[/] {_plain(title)} [dim]{_seconds(begin)}[/]", highlight=False)
        self._release()

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        (self._bars.console if self._bars else self._console).print(
            f"[yellow]•[/] {_plain(text)}", highlight=False
        )

    def _acquire(self) -> Bars:
        with self._lock:
            if self._bars is None:
                self._bars = Bars(
                    SpinnerColumn(),
                    TextColumn("{task.description}", markup=False),
                    BarColumn(bar_width=24),
                    _Size(),
                    _Rate(),
                    _Left(),
                    TimeElapsedColumn(),
                    TextColumn("{task.fields[words]}", style="dim", markup=False),
                    console=self._console,
                    transient=True,
                )
                self._bars.start()
            self._open += 1
            return self._bars

    def _release(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0 and self._bars is not None:
                self._bars.stop()
                self._bars = None


class _Size(DownloadColumn):
    """Bytes done of all; nothing for work without a size."""

    def render(self, task: BarTask) -> Text:
        return super().render(task) if task.total else Text("")


class _Rate(TransferSpeedColumn):
    def render(self, task: BarTask) -> Text:
        return super().render(task) if task.total else Text("")


class _Left(TimeRemainingColumn):
    def render(self, task: BarTask) -> Text:
        return super().render(task) if task.total else Text("")


class _Bar:
    def __init__(self, bars: Bars, bar: TaskID) -> None:
        self._bars = bars
        self._bar = bar

    def advance(self, count_bytes: int) -> None:
        self._bars.advance(self._bar, count_bytes)

    def resize(self, total_bytes: int) -> None:
        self._bars.update(self._bar, total=total_bytes)

    def status(self, text: str) -> None:
        self._bars.update(self._bar, words=text)


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
        if time.monotonic() - begin >= _TOLD_FROM_S or task.total_bytes >= _TOLD_FROM_BYTES:
            size = f" {task.total_bytes / 1e6:.1f} MB" if task.total_bytes else ""
            self._write(f"{title}:{size} {_seconds(begin)}")

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
        if now - self._told >= _PLAIN_INTERVAL_S:
            self._told = now
            self._write(f"{self._title}: {text}")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _seconds(begin: float) -> str:
    return f"{time.monotonic() - begin:.1f} s"

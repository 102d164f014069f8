"""Progress on a terminal: bars. They are drawn on standard error."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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

from edgebuild.cli.plain import TOLD_FROM_S, seconds_since
from edgebuild.progress import Task


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
        if time.monotonic() - begin >= TOLD_FROM_S:
            bars.console.print(f"[green]✓[/] {_plain(title)} [dim]{seconds_since(begin)}[/]", highlight=False)
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


def _plain(text: str) -> str:
    return text.replace("[", r"\[")

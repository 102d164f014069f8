"""How long work tells of itself. The engine calls these; `cli/` decides what is drawn.

with progress.task("copy model", total_bytes=size) as task:
task.advance(chunk_bytes)
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, count_bytes: int) -> None:
        """Say that `count_bytes` more are done."""
        ...

    def resize(self, total_bytes: int) -> None:
        """Say how large the work is, once that is known."""
        ...

    def status(self, text: str) -> None:
        """Say in a few words what is being done now, e.g. "94/132 files compiled"."""
        ...


class Progress(Protocol):
    """A place to report work to. Implementations are safe to use from several threads."""

    def task(self, title: str, *, total_bytes: int | None = None) -> AbstractContextManager[Task]:
        """Open a piece of work; leaving the context ends it, an exception marks it failed.

        Args:
            title: What is done, in a few words: "download llama-cpp-python 0.3.36".
            total_bytes: Its size when known; None shows a spinner instead of a bar.
        """
        ...

    def note(self, text: str) -> None:
        """Tell one line that stays, e.g. "engine: native (no Docker daemon answers)"."""
        ...


class SilentProgress:
    """Reports nothing: for `--quiet` and for tests."""

    @contextmanager
    def task(self, title: str, *, total_bytes: int | None = None) -> Iterator[Task]:
        """Run the work without a word."""
        del title, total_bytes
        yield _SilentTask()

    def note(self, text: str) -> None:
        """Say nothing."""


class _SilentTask:
    def advance(self, count_bytes: int) -> None:
        """Say nothing."""

    def resize(self, total_bytes: int) -> None:
        """Say nothing."""

    def status(self, text: str) -> None:
        """Say nothing."""

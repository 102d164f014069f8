"""A progress that remembers, and a host for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgebuild.host import Host
from edgebuild.progress import Task


class Told:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.titles: list[str] = []
        self.statuses: list[str] = []
        self.advanced_bytes = 0
        self.total_bytes = 0

    @contextmanager
    def task(self, title: str, *, total_bytes: int | None = None) -> Iterator[Task]:
        self.total_bytes = total_bytes or 0
        self.titles.append(title)
        yield _Task(self)

    def note(self, text: str) -> None:
        self.notes.append(text)


class _Task:
    def __init__(self, told: Told) -> None:
        self._told = told

    def advance(self, count_bytes: int) -> None:
        self._told.advanced_bytes += count_bytes

    def resize(self, total_bytes: int) -> None:
        self._told.total_bytes = total_bytes

    def status(self, text: str) -> None:
        self._told.statuses.append(text)


def host_at(folder: Path, **environment: str) -> Host:
    return Host(
        environment={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(folder), **environment},
        working_directory=folder,
        cache_directory=folder / "store",
        machine="x86_64",
        cpu_count=2,
        now_s=0,
        source_date_epoch_s=None,
    )

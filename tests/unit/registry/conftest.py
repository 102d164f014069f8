"""A double, and clients of it that are short of patience."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from edgebuild.oci.blob import Blob
from edgebuild.oci.reference import Reference
from edgebuild.progress import Task
from edgebuild.registry.patience import Limits
from edgebuild.registry.push import RegistrySink, open_sink
from tests.unit.registry.double import Double, running_double

FAST = Limits(
    connect_s=2, idle_s=1.0, commit_s=2, attempts=4, deadline_s=5, backoff_s=0.01, backoff_cap_s=0.05
)


class Recorder:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced: dict[str, int] = {}
        self.statuses: list[str] = []

    @contextmanager
    def task(self, title: str, *, total_bytes: int | None = None) -> Iterator[Task]:
        del total_bytes
        self.advanced[title] = 0
        yield _Task(self, title)

    def note(self, text: str) -> None:
        self.notes.append(text)


class _Task:
    def __init__(self, recorder: Recorder, title: str) -> None:
        self._recorder, self._title = recorder, title

    def advance(self, count_bytes: int) -> None:
        self._recorder.advanced[self._title] += count_bytes

    def resize(self, total_bytes: int) -> None:
        """Keep nothing of it."""

    def status(self, text: str) -> None:
        self._recorder.statuses.append(text)


MakeDouble = Callable[..., Double]
OpenSink = Callable[..., RegistrySink]


@pytest.fixture
def make_double() -> Iterator[MakeDouble]:
    with contextlib.ExitStack() as stack:
        yield lambda **values: stack.enter_context(running_double(**values))


@pytest.fixture
def double(make_double: MakeDouble) -> Double:
    return make_double()


@pytest.fixture
def progress() -> Recorder:
    return Recorder()


@pytest.fixture
def sink_of(progress: Recorder, tmp_path: Path) -> Iterator[OpenSink]:
    """`sink_of(double, environment=…, limits=…, mount_from=…, chunk_bytes=…)`."""
    with contextlib.ExitStack() as stack:

        def make(
            double: Double,
            *,
            repository: str = "acme/llm",
            environment: Mapping[str, str] | None = None,
            limits: Limits = FAST,
            mount_from: str = "",
            chunk_bytes: int = 64 << 10,
        ) -> RegistrySink:
            sink: AbstractContextManager[RegistrySink] = open_sink(
                Reference.parse(f"{double.host}/{repository}:1"),
                environment=environment or {"HOME": str(tmp_path)},
                progress=progress,
                limits=limits,
                mount_from=mount_from,
                chunk_bytes=chunk_bytes,
            )
            return stack.enter_context(sink)

        yield make


@pytest.fixture
def blob(tmp_path: Path) -> Blob:
    """300 000 bytes from a file between literal bytes: five PATCHes of 64 KiB."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 1171)
    head, tail = b"h" * 100, b"t" * 124
    return Blob((head, path, tail), 100 + 256 * 1171 + 124)

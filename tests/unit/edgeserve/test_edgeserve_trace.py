import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeserve.log import Log
from edgeserve.trace import Trace
from tests.support.chrome_trace import read_trace


@pytest.fixture
def log(tmp_path: Path) -> tuple[Log, Callable[[], str]]:
    path = tmp_path / "log"
    return Log(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)), path.read_text


def _fill(trace: Trace, count: int) -> None:
    for number in range(count):
        trace.span("step", lane=0, start=number * 1e-3, end=number * 1e-3 + 5e-4, tokens=number)


def _trace(path: Path, log: Log, **bounds: int) -> Trace:
    trace = Trace(path, log, name='a "model"', lanes=2, **bounds)
    trace._started = 0.0  # the spans above count from nought
    return trace


def test_a_trace_is_complete_at_any_moment(tmp_path: Path, log: tuple[Log, Callable[[], str]]) -> None:
    path = tmp_path / "trace.json"
    trace = _trace(path, log[0])
    assert [event["name"] for event in read_trace(path)] == ["process_name"] + ["thread_name"] * 3
    seen: list[int] = []
    for _ in range(4):
        _fill_on(trace, len(seen))
        seen.append(len(read_trace(path)))
    assert seen == sorted(seen)
    assert seen[-1] > 4
    trace.count("tokens", 5.0, tokens=7)
    trace.close()
    trace.close()
    _fill(trace, 3)
    events = read_trace(path)
    assert events[-1]["args"] == {"tokens": 7}
    assert events[0]["args"]["name"] == 'edgeserve a "model"'


def _fill_on(trace: Trace, turn: int) -> None:
    for number in range(turn * 100, turn * 100 + 100):
        trace.span("step", lane=0, start=number * 1e-3, end=number * 1e-3 + 5e-4)


def test_a_trace_is_bounded(tmp_path: Path, log: tuple[Log, Callable[[], str]]) -> None:
    path = tmp_path / "trace.json"
    trace = _trace(path, log[0], most_bytes=100_000)
    _fill(trace, 5000)
    trace.close()
    assert 50_000 < path.stat().st_size <= 100_000
    assert len(read_trace(path)) > 256
    assert log[1]().count("warning trace problem=") == 1


def test_a_full_disk_ends_the_trace_alone(log: tuple[Log, Callable[[], str]]) -> None:
    trace = _trace(Path("/dev/full"), log[0])
    assert log[1]().count('warning trace problem="No space left on device"') == 1
    _fill(trace, 300)
    trace.close()
    assert log[1]().count("\n") == 1

"""Builds that are interrupted or killed, at every kind of change that they make to files, and inside the programs they start."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bench import Bench, Warm, make_bench
from tests.support.peers.tool import Completed

KILLPOINT = Path(__file__).parents[1] / "support" / "killpoint"


@pytest.fixture
def half_done(warm: Warm, tmp_path: Path) -> tuple[Bench, str]:
    """A layout of the 16-bit model, and a store that lacks most of what the default build needs."""
    return prepare(warm, tmp_path)


def prepare(warm: Warm, folder: Path) -> tuple[Bench, str]:
    bench = make_bench(warm, folder)
    bench.build("--quantization", "F16", "--tag", "h.example/a:old")
    bench.forget_steps()
    return bench, bench.digest()


@pytest.fixture(scope="module")
def points(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """Every change of files that an undisturbed build makes, and the digest that it gives."""
    bench, _old = prepare(warm, tmp_path_factory.mktemp("points"))
    log = bench.command.folder / "points"
    bench.build("--tag", "h.example/a:new", env=killpoint(bench, log, 0, signal.SIGKILL))
    found = [line.replace(os.fspath(bench.command.folder), "") for line in log.read_text().splitlines()]
    digest = bench.digest()
    bench.assert_sound()
    shutil.rmtree(bench.command.folder)
    return found, digest


def killpoint(bench: Bench, log: Path, number: int, with_signal: signal.Signals) -> dict[str, str]:
    return {
        "PYTHONPATH": os.fspath(KILLPOINT),
        "KILLPOINT_FOLDERS": f"{bench.store}:{bench.layout}:{bench.lock.parent / '.edgebuild'}",
        "KILLPOINT_NUMBER": str(number),
        "KILLPOINT_SIGNAL": str(int(with_signal)),
        "KILLPOINT_LOG": os.fspath(log),
    }


def kill_at(bench: Bench, number: int, with_signal: signal.Signals) -> Completed:
    env = killpoint(bench, bench.command.folder / "points", number, with_signal)
    return bench.build("--tag", "h.example/a:new", env=env, check=False)


def assert_survived(
    bench: Bench, done: Completed, *, old: str, new: str, with_signal: signal.Signals
) -> None:
    assert "Traceback" not in done.stderr, done.describe()
    assert done.returncode in {-with_signal, 130 if with_signal != signal.SIGKILL else -9, 0}, done.describe()
    # Whatever the moment was, the layout is whole: the old one or the new one.
    assert bench.digest() in {old, new}
    assert_blobs_whole(bench.layout, bench.digest())
    assert_nothing_runs(bench)
    if with_signal != signal.SIGKILL:
        assert bench.leftovers() == []
    bench.build("--tag", "h.example/a:new")
    assert bench.digest() == new
    bench.assert_sound()


def assert_blobs_whole(layout: Path, digest: str) -> None:
    """Follow every digest from the index, reading every byte."""
    data = (layout / "blobs" / digest.replace(":", "/")).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest.partition(":")[2]
    if not data.startswith(b"{"):
        return
    document = json.loads(data)
    for child in (*document.get("manifests", ()), *document.get("layers", ())):
        assert_blobs_whole(layout, child["digest"])
    if "layers" in document:
        assert_blobs_whole(layout, document["config"]["digest"])


def processes_of(bench: Bench) -> Iterator[str]:
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):
            continue
        if folder.name.isdecimal() and os.fspath(bench.command.folder) in line:
            yield f"{folder.name} {line}"


def assert_nothing_runs(bench: Bench) -> None:
    deadline = time.monotonic() + 15
    while found := list(processes_of(bench)):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def kind_of(point: str) -> str:
    """What a change is about, without digests and random names."""
    event, _, path = point.partition(" ")
    words = [
        "*" if len(word) >= 32 or word.startswith(("tmp", ".edgebuild-")) else word
        for word in path.split("/")
    ]
    return f"{event} {'/'.join(words[:5])}"


def test_there_are_many_kinds_of_points(points: tuple[list[str], str]) -> None:
    """What the other tests choose from: if a build changed files in a way that hooks do not see, they would be blind."""
    found, _ = points
    kinds = {kind_of(point) for point in found}
    for part in (
        "v1/temporary",
        "v1/artifact",
        "v1/layer",
        "v1/model",
        "v1/locks",
        "layout/blobs",
        "layout/.edgebuild",
        "subprocess",
    ):
        assert any(part in kind for kind in (*kinds, *found)), (part, kinds)


SOME = (
    "v1/temporary/artifact",
    "v1/artifact/",
    "v1/temporary/layer",
    "v1/layer/",
    "v1/model/",
    "layout/blobs",
)
QUICK = ("v1/artifact/", "layout/blobs")


@pytest.mark.parametrize(
    "where", [pytest.param(where, marks=() if where in QUICK else pytest.mark.slow) for where in SOME]
)
def test_killed_at_some_points(
    half_done: tuple[Bench, str], points: tuple[list[str], str], where: str
) -> None:
    """The last change of each kind: what was made is whole and not yet, or just, known to be."""
    bench, old = half_done
    found, new = points
    with_signal = (signal.SIGKILL, signal.SIGINT)[SOME.index(where) % 2]
    number = max(at for at, point in enumerate(found, 1) if where in point)
    done = kill_at(bench, number, with_signal)
    print(found[number - 1])
    assert_survived(bench, done, old=old, new=new, with_signal=with_signal)


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["open .*index.json", "os.rename .*index.json"])
def test_killed_when_the_layout_changes_hands(
    half_done: tuple[Bench, str], points: tuple[list[str], str], what: str, with_signal: signal.Signals
) -> None:
    bench, old = half_done
    found, new = points
    event, _, name = what.partition(" .*")
    number = next(
        at
        for at, point in enumerate(found, 1)
        if point.startswith(event) and name in point and "layout" in point
    )
    done = kill_at(bench, number, with_signal)
    assert done.returncode != 0
    if with_signal == signal.SIGKILL:
        assert bench.digest() == old
    assert_survived(bench, done, old=old, new=new, with_signal=with_signal)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_killed_at_random_points(
    half_done: tuple[Bench, str], points: tuple[list[str], str], seed: int
) -> None:
    bench, old = half_done
    found, new = points
    chance = random.Random(seed)
    with_signal = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
    number = chance.randint(1, len(found))
    done = kill_at(bench, number, with_signal)
    print(with_signal.name, found[number - 1])
    assert_survived(bench, done, old=old, new=new, with_signal=with_signal)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(15))
def test_killed_at_random_moments(
    half_done: tuple[Bench, str], points: tuple[list[str], str], seed: int
) -> None:
    """Moments fall into long steps, points into busy ones."""
    bench, old = half_done
    chance = random.Random(seed)
    with_signal = chance.choice((signal.SIGKILL, signal.SIGINT))
    build = start(bench, "--tag", "h.example/a:new")
    time.sleep(0.6 + 4 * chance.random())
    done = end(build, with_signal)
    assert_survived(bench, done, old=old, new=points[1], with_signal=with_signal)


@pytest.mark.parametrize(
    "with_signal",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_killed_while_a_recipe_runs(
    half_done: tuple[Bench, str], points: tuple[list[str], str], with_signal: signal.Signals
) -> None:
    bench, old = half_done
    bench.forget_software("rootfs")
    build = start(bench, "--tag", "h.example/a:new")
    wait_until(lambda: any(bench.store.glob("v1/temporary/artifact-*/tree/usr/lib/python3.13")), build)
    assert [line for line in processes_of(bench) if "recipe.py" in line]
    done = end(build, with_signal)
    assert_survived(bench, done, old=old, new=points[1], with_signal=with_signal)


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_killed_while_an_image_is_tested(
    half_done: tuple[Bench, str], points: tuple[list[str], str], with_signal: signal.Signals
) -> None:
    bench, old = half_done
    argv = [word for word in bench.argv("--tag", "h.example/a:new") if word != "--no-test"]
    build = start_argv(bench, argv)
    wait_until(
        lambda: any("edgeserve" in line and ".qemu" in line for line in processes_of_smoke()), build, 120
    )
    done = end(build, with_signal)
    assert not processes_of_smoke_in(bench)
    if with_signal == signal.SIGKILL:
        # The next test of an image clears away what this one had unpacked.
        assert bench.digest() == old
        bench.command.run(*argv)
    assert_survived(bench, done, old=old, new=points[1], with_signal=with_signal)


def processes_of_smoke() -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (OSError, ValueError):
            continue
    return found


def processes_of_smoke_in(bench: Bench) -> list[str]:
    """Processes whose root lies in this store's scratch folder."""
    deadline = time.monotonic() + 15
    while True:
        found = []
        for folder in Path("/proc").iterdir():
            try:
                root = os.fspath((folder / "root").readlink())
            except (OSError, ValueError):
                continue
            if root.startswith(os.fspath(bench.store)):
                found.append(folder.name)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@pytest.mark.slow
def test_interrupted_twice(half_done: tuple[Bench, str], points: tuple[list[str], str]) -> None:
    """Who presses Ctrl-C again while things are cleaned up still gets one line and a good store."""
    bench, old = half_done
    bench.forget_software("rootfs")
    build = start(bench, "--tag", "h.example/a:new")
    wait_until(lambda: any(bench.store.glob("v1/temporary/artifact-*/tree/usr/lib/python3.13")), build)
    build.send_signal(signal.SIGINT)
    time.sleep(0.02)
    done = end(build, signal.SIGINT)
    assert done.returncode == 130, done.describe()
    assert "Traceback" not in done.stderr, done.describe()
    bench.build("--tag", "h.example/a:new")
    assert bench.digest() == points[1] != old
    bench.assert_sound()


def start(bench: Bench, *more: str) -> "subprocess.Popen[str]":
    return start_argv(bench, list(bench.argv(*more)))


def start_argv(bench: Bench, argv: list[str | Path]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*bench.command.program, *argv], env=dict(bench.command.variables), cwd=bench.command.folder,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def end(build: "subprocess.Popen[str]", with_signal: signal.Signals) -> Completed:
    build.send_signal(with_signal)
    stdout, stderr = build.communicate(timeout=60)
    return Completed(args=(), returncode=build.returncode, stdout=stdout, stderr=stderr)


def wait_until(done: Callable[[], bool], build: "subprocess.Popen[str]", timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if build.poll() is not None:
            raise AssertionError(build.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.002)

"""Mirrors and indexes that are away, slow, cut connections or serve something else, before real downloads."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebuild.artifacts.files import size_so_far
from tests.support.bench import Bench, assert_failed
from tests.support.mirror import Fault, Mirror, running_mirror
from tests.support.waiting import wait_until

DEB = "ca-certificates_"
WHEEL = "uvicorn-"
QUICK_REFUSALS = {(DEB, 404)}


@pytest.fixture
def mirror(bench: Bench) -> Iterator[Mirror]:
    with running_mirror(bench.lock, bench.warm.store) as server:
        yield server


@pytest.fixture
def thirsty(bench: Bench) -> Bench:
    """A store without the downloads, the root file system and the Python dependencies."""
    shutil.rmtree(bench.store / "v1" / "download")
    for name in ("rootfs", "python-deps"):
        bench.forget_software(name)
    return bench


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(bench: Bench, mirror: Mirror, *, check: bool = False, timeout_s: float = 300) -> "object":
    return bench.build(*mirror.options, env=mirror.environment, check=check, timeout_s=timeout_s)


@pytest.mark.slow
def test_all_is_fetched_from_the_mirrors_named(thirsty: Bench, mirror: Mirror) -> None:
    thirsty.build(*mirror.options, env=mirror.environment)
    assert mirror.asked(DEB)
    assert mirror.asked(WHEEL)
    thirsty.assert_sound()
    before = len(mirror.requests)
    thirsty.build(*mirror.options, env=mirror.environment)
    assert len(mirror.requests) == before


@pytest.mark.slow
def test_a_mirror_that_is_away(thirsty: Bench, mirror: Mirror) -> None:
    away = f"http://127.0.0.1:{closed_port()}/debian"
    done = thirsty.build("--mirror", away, "--mirror", away, env=mirror.environment, check=False)
    assert_failed(done, 5, "from 127.0.0.1", "cannot be downloaded")
    fetch(thirsty, mirror, check=True)
    thirsty.assert_sound()


@pytest.mark.slow
def test_an_index_that_is_away(thirsty: Bench, mirror: Mirror) -> None:
    away = {"PIP_INDEX_URL": f"http://127.0.0.1:{closed_port()}/simple/", "PIP_CONFIG_FILE": "/dev/null"}
    done = thirsty.build(*mirror.options, env=away, check=False)
    assert_failed(done, 5, "the package index http://127.0.0.1:", "does not answer")
    fetch(thirsty, mirror, check=True)
    thirsty.assert_sound()


@pytest.mark.parametrize(
    ("part", "status"),
    [
        pytest.param(part, status, marks=() if (part, status) in QUICK_REFUSALS else pytest.mark.slow)
        for part in (DEB, WHEEL, "/simple/uvicorn")
        for status in (403, 404, 410, 500, 503)
    ],
)
def test_a_file_that_is_refused(thirsty: Bench, mirror: Mirror, part: str, status: int) -> None:
    mirror.faults[part] = Fault(status=status)
    done = thirsty.build(*mirror.options, env=mirror.environment, check=False)
    assert_failed(done, 5, "uvicorn" if part != DEB else DEB)
    mirror.faults.clear()
    fetch(thirsty, mirror, check=True)
    thirsty.assert_sound()


@pytest.mark.slow
@pytest.mark.parametrize("part", [DEB, WHEEL])
def test_a_connection_that_is_cut_goes_on_where_it_stopped(thirsty: Bench, mirror: Mirror, part: str) -> None:
    mirror.faults[part] = Fault(cut_after=10_000, times=3)
    thirsty.build(*mirror.options, env=mirror.environment)
    assert [range_ for _, range_ in mirror.asked(part)] == [
        "",
        "bytes=10000-",
        "bytes=20000-",
        "bytes=30000-",
    ]
    thirsty.assert_sound()


@pytest.mark.slow
@pytest.mark.parametrize("part", [DEB, WHEEL])
def test_a_server_that_gives_up_for_a_while(thirsty: Bench, mirror: Mirror, part: str) -> None:
    mirror.faults[part] = Fault(status=503, times=2)
    thirsty.build(*mirror.options, env=mirror.environment)
    assert len(mirror.asked(part)) == 3
    thirsty.assert_sound()


@pytest.mark.slow
def test_a_slow_mirror_is_waited_for(thirsty: Bench, mirror: Mirror) -> None:
    mirror.faults[WHEEL] = Fault(bytes_per_s=30_000)
    thirsty.build(*mirror.options, env=mirror.environment)
    thirsty.assert_sound()


@pytest.mark.slow
@pytest.mark.parametrize("part", [DEB, WHEEL])
@pytest.mark.parametrize("is_same_size", [True, False], ids=["same size", "shorter"])
def test_other_bytes_under_the_same_name(
    thirsty: Bench, mirror: Mirror, part: str, is_same_size: bool
) -> None:
    name, path = next((name, path) for name, path in mirror.files.items() if part in name)
    size = path.stat().st_size
    mirror.faults[part] = Fault(body=bytes(size if is_same_size else size // 2))
    done = thirsty.build(*mirror.options, env=mirror.environment, check=False)
    assert_failed(done, 5, Path(name).name, "127.0.0.1")
    assert not list((thirsty.store / "v1/scratch/partial").glob("*.whl"))
    mirror.faults.clear()
    fetch(thirsty, mirror, check=True)
    thirsty.assert_sound()


@pytest.mark.slow
def test_other_bytes_once_are_fetched_again(thirsty: Bench, mirror: Mirror) -> None:
    path = next(path for name, path in mirror.files.items() if WHEEL in name)
    mirror.faults[WHEEL] = Fault(body=bytes(path.stat().st_size), times=1)
    thirsty.build(*mirror.options, env=mirror.environment)
    thirsty.assert_sound()


@pytest.mark.slow
def test_an_index_that_lists_another_hash(thirsty: Bench, mirror: Mirror) -> None:
    page = mirror.pages["/simple/uvicorn/"]
    start = page.index(b'"sha256": "') + 11
    mirror.pages["/simple/uvicorn/"] = page[:start] + b"0" * 64 + page[start + 64 :]
    done = thirsty.build(*mirror.options, env=mirror.environment, check=False)
    assert_failed(done, 5, WHEEL, "sha256")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(b"", marks=pytest.mark.slow),
        pytest.param(b"[]", marks=pytest.mark.slow),
        pytest.param(b"\xff", marks=pytest.mark.slow),
        pytest.param(b'{"files": [{}]}', marks=pytest.mark.slow),
        b"[" * 100_000,
    ],
    ids=["empty", "list", "no text", "odd", "deep"],
)
def test_an_index_that_answers_nonsense(thirsty: Bench, mirror: Mirror, page: bytes) -> None:
    mirror.pages["/simple/uvicorn/"] = page
    done = thirsty.build(*mirror.options, env=mirror.environment, check=False)
    assert_failed(done, 5, "uvicorn")


@pytest.mark.parametrize(
    "number",
    [*(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL],
)
def test_a_build_that_ends_in_a_download_goes_on_next_time(
    thirsty: Bench, mirror: Mirror, number: signal.Signals
) -> None:
    mirror.faults[DEB] = Fault(stall_after=20_000, times=1)
    log = thirsty.command.folder / "log"
    with log.open("wb") as out:
        build = subprocess.Popen(
            [*thirsty.command.program, *thirsty.argv(*mirror.options)],
            env={**thirsty.command.variables, **mirror.environment},
            cwd=thirsty.command.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
        partial = thirsty.store / "v1/scratch/partial"
        # Other downloads end meanwhile, and their files go.
        wait_until(lambda: any(size_so_far(path) == 20_000 for path in partial.glob("*")))
        begin = time.monotonic()
        build.send_signal(number)
        code = build.wait(60)
        assert time.monotonic() - begin < 10
    told = log.read_text()
    assert "Traceback" not in told
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 130
        assert told.count("error: ") == 1
    thirsty.build(*mirror.options, env=mirror.environment)
    assert [range_ for _, range_ in mirror.asked(DEB)] == ["", "bytes=20000-"]
    thirsty.assert_sound()


@pytest.mark.slow
@pytest.mark.parametrize("part", [DEB, WHEEL, "/simple/uvicorn"])
def test_a_mirror_that_says_nothing_more(thirsty: Bench, mirror: Mirror, part: str) -> None:
    mirror.faults[part] = Fault(stall_after=50)
    done = thirsty.build(*mirror.options, env=mirror.environment, check=False, timeout_s=400)
    assert_failed(done, 5, "uvicorn" if part != DEB else DEB)
    mirror.faults.clear()
    fetch(thirsty, mirror, check=True)
    thirsty.assert_sound()


@pytest.mark.slow
def test_resolving_with_a_mirror_that_is_away(bench: Bench, mirror: Mirror) -> None:
    """apt asks three times before it gives up."""
    away = f"http://127.0.0.1:{closed_port()}/debian"
    argv = [word for word in bench.argv("--update-lock", "--mirror", away) if word != "--locked"]
    before = bench.lock.read_bytes()
    done = bench.command.run(*argv, env=mirror.environment, check=False)
    assert_failed(done, 5, "apt cannot read trixie", away)
    assert bench.lock.read_bytes() == before


def test_resolving_with_a_mirror_that_nobody_signed(bench: Bench, mirror: Mirror) -> None:
    unsigned = b"Origin: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 01 Aug 2026 00:00:00 UTC\n"
    for suite in ("debian/dists/trixie", "security/dists/trixie-security"):
        mirror.pages[f"/{suite}/Release"] = unsigned
        mirror.pages[f"/{suite}/InRelease"] = unsigned
    argv = [word for word in bench.argv("--update-lock", *mirror.options) if word != "--locked"]
    before = bench.lock.read_bytes()
    done = bench.command.run(*argv, env=mirror.environment, check=False)
    assert_failed(done, 5, "apt cannot read trixie", f"http://127.0.0.1:{mirror.port}/debian")
    assert bench.lock.read_bytes() == before


def test_ctrl_c_while_packages_are_resolved(bench: Bench, mirror: Mirror) -> None:
    """Neither apt's time-outs nor those of the index's client are waited for."""
    mirror.pages["/debian/dists/trixie/InRelease"] = b"x" * 1000
    # The first project that is asked for; later ones may not be, if the index lacks one before them.
    waiting = ("Release", "/simple/cffi")
    mirror.faults |= dict.fromkeys(waiting, Fault(stall_after=10))
    argv = [word for word in bench.argv("--update-lock", *mirror.options) if word != "--locked"]
    before = bench.lock.read_bytes()
    log = bench.command.folder / "log"
    with log.open("wb") as out, subprocess.Popen(
        [*bench.command.program, *argv],
        env={**bench.command.variables, **mirror.environment},
        cwd=bench.command.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
    ) as build:  # fmt: skip
        try:
            wait_until(lambda: all(mirror.asked(part) for part in waiting))
            begin = time.monotonic()
            build.send_signal(signal.SIGINT)
            assert build.wait(60) == 130, log.read_text()
            assert time.monotonic() - begin < 10
        finally:
            build.kill()
    told = log.read_text()
    assert "Traceback" not in told
    assert told.count("error: ") == 1
    assert bench.lock.read_bytes() == before
    bench.assert_sound()

"""Surroundings that nobody plans for: odd names, masks, locales, no terminal, no home, clocks, disks that are only read."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.support.bench import Bench, Warm, assert_failed, make_bench, python_program
from tests.support.built import ROOT, Edgebuild
from tests.support.fixtures import Peers
from tests.support.peers.tool import Completed, run

ODD = "Ordner mit Leerzeichen, é, ш, 漢 & 'quotes' $HOME %s"


@pytest.fixture(scope="module")
def good(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a build in plain surroundings."""
    bench = make_bench(warm, tmp_path_factory.mktemp("good"))
    bench.build()
    return bench.digest()


@pytest.fixture
def half(bench: Bench) -> Bench:
    """A store that lacks most of what the build needs, so that all its steps see the surroundings."""
    bench.forget_steps()
    return bench


def copy_checkout(destination: Path) -> Path:
    """Copy what a checkout needs to run."""
    for name in ("builder", "images", "profiles", "templates"):
        shutil.copytree(ROOT / name, destination / name, ignore=shutil.ignore_patterns("__pycache__"))
    return destination


def full_test_argv(bench: Bench, *more: str | Path) -> list[str | Path]:
    return [word for word in bench.argv(*more) if word != "--no-test"]


@pytest.mark.slow
def test_odd_names_everywhere(warm: Warm, tmp_path: Path, good: str) -> None:
    """Checkout, store, lock, layout and working directory."""
    folder = tmp_path / ODD
    checkout = copy_checkout(folder / "checkout")
    bench = make_bench(warm, folder / "build", program=python_program(checkout))
    bench.forget_steps()
    done = bench.command.run(*full_test_argv(bench), check=False, timeout_s=400)
    assert done.returncode == 0, done.describe()
    assert bench.digest() == good
    bench.assert_sound()
    bench.command.run("check", bench.layout)
    bench.command.run("archive", bench.layout, "--output", folder / "archive é.tar")


@pytest.mark.slow
def test_an_odd_name_of_the_model(half: Bench) -> None:
    source = (
        Path(half.warm.model)
        if half.warm.model != "demo"
        else next((ROOT / "images/demo-model").glob("*.gguf"))
    )
    model = half.command.folder / "Modell – naïve (v2) ш.gguf"
    shutil.copyfile(source, model)
    done = half.build("--model", model, check=False)
    if done.returncode == 0:
        half.assert_sound()
    else:
        assert_failed(done, 4, "Modell")


@pytest.mark.slow
def test_a_mask_that_lets_nobody_in(half: Bench, good: str) -> None:
    prefix = ("sh", "-c", 'umask 077; exec "$@"', "sh")
    done = run(
        [*prefix, *half.command.program, *half.argv()], env=half.command.variables, cwd=half.command.folder
    )
    assert done.returncode == 0
    assert half.digest() == good
    half.assert_sound()


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"LANG": "C", "LC_ALL": "C"}, marks=pytest.mark.slow),
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"},
        {"PYTHONIOENCODING": "latin-1"},
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
    ],
    ids=["C", "ASCII", "Turkish", "Latin-1", "ASCII output"],
)
def test_locales(bench: Bench, good: str, variables: dict[str, str]) -> None:
    bench.forget_software("server")
    done = bench.build(env=variables, check=False)
    assert done.returncode == 0, done.describe()
    assert bench.digest() == good
    done = bench.command.run(
        "fit", "--model", bench.warm.model, "--profile", "pi4", env=variables, check=False
    )
    assert done.returncode == 0, done.describe()


def test_no_home(half: Bench, good: str) -> None:
    variables = {
        name: value
        for name, value in half.command.variables.items()
        if name not in {"HOME", "USER", "LOGNAME"}
    }
    command = Edgebuild(folder=half.command.folder, variables=variables)
    done = command.run(*half.argv(), check=False)
    assert done.returncode == 0, done.describe()
    assert half.digest() == good
    del variables["EDGEBUILD_CACHE"]
    done = Edgebuild(folder=half.command.folder, variables=variables).run("cache", "info", check=False)
    assert_failed(done, 2, "HOME is not set")


@pytest.mark.slow
def test_a_home_that_is_not_there(half: Bench, good: str) -> None:
    half.build(env={"HOME": "/nonexistent"})
    assert half.digest() == good


STREAMS = {
    "closed standard input": "exec 0<&-",
    "closed standard output": "exec 1>&-",
    "closed standard error": "exec 2>&-",
    "all closed": "exec 0<&- 1>&- 2>&-",
}


@pytest.mark.parametrize(
    "how", [pytest.param(name, marks=() if "all" in name else pytest.mark.slow) for name in STREAMS]
)
def test_streams_that_are_closed(bench: Bench, good: str, how: str) -> None:
    bench.forget_software("server")
    prefix = ("sh", "-c", f'{STREAMS[how]}; exec "$@"', "sh")
    done = run(
        [*prefix, *bench.command.program, *bench.argv()],
        env=bench.command.variables, cwd=bench.command.folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.describe()
    assert "Traceback" not in done.stderr, done.describe()
    assert bench.digest() == good
    bench.assert_sound()


def test_nobody_reads_what_is_said(bench: Bench, good: str) -> None:
    """`edgebuild image 2>&1 | true`: the build ends, or goes on in silence; the store stays good either way."""
    bench.forget_software("server")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*bench.command.program, *bench.argv()], env=dict(bench.command.variables), cwd=bench.command.folder,
        stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, check=False, timeout=120,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode in {0, 141}
    bench.build()
    assert bench.digest() == good
    bench.assert_sound()


def test_a_terminal_gets_bars_and_nothing_else_does(bench: Bench) -> None:
    """The same build writes no escape sequence where there is no terminal."""
    plain = bench.build().stderr
    assert "\x1b" not in plain
    controller, terminal = os.openpty()
    build = subprocess.Popen(
        [*bench.command.program, *bench.argv()], env={**bench.command.variables, "TERM": "xterm-256color"},
        cwd=bench.command.folder, stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    said = b""
    try:
        while chunk := os.read(controller, 65536):
            said += chunk
    except OSError:
        pass  # Linux answers EIO when the last one has closed the terminal
    os.close(controller)
    assert build.wait(60) == 0, said
    assert b"\x1b[" in said
    assert b"sha256:" in said


def test_files_from_the_future(half: Bench, good: str) -> None:
    """A store and a layout of a machine whose clock ran years ahead: what a clock set back looks like to a build.

    The clock itself is not shifted: seals compare times for equality only, and no output holds the present time.
    """
    half.build("--quantization", "F16")
    ahead_s = time.time() + 10 * 365 * 86400
    for path in (*half.store.rglob("*"), *half.layout.rglob("*"), half.lock):
        os.utime(path, (ahead_s, ahead_s), follow_symlinks=False)
    half.forget_software("server")
    half.build()
    assert half.digest() == good
    half.assert_sound()
    half.command.run("cache", "prune", "--unused-for", "30d")
    half.build()
    assert half.digest() == good


def test_a_checkout_that_is_only_read(warm: Warm, tmp_path: Path, good: str, peers: Peers) -> None:
    if os.geteuid() != 0:
        peers.missing("only root can mount a folder for reading only")
    checkout = copy_checkout(tmp_path / "checkout")
    subprocess.run(["mount", "--bind", checkout, checkout], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", checkout], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (checkout / "probe").touch()
        bench = make_bench(warm, tmp_path / "build", program=python_program(checkout))
        bench.forget_steps()
        bench.build()
        assert bench.digest() == good
        bench.assert_sound()
    finally:
        subprocess.run(["umount", "--lazy", checkout], check=True)


def test_a_store_that_is_only_read(warm: Warm, tmp_path: Path, good: str, peers: Peers) -> None:
    """Enough for a build that finds everything; told when it does not."""
    if os.geteuid() != 0:
        peers.missing("only root can mount a folder for reading only")
    bench = make_bench(warm, tmp_path / "build")
    bench.build()
    shutil.rmtree(bench.layout)
    subprocess.run(["mount", "--bind", bench.store, bench.store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", bench.store], check=True)
        bench.build()
        assert bench.digest() == good
        done = bench.build("--quantization", "Q8_0", check=False)
        assert_failed(done, 5, f"the store {bench.store} cannot be used", "Read-only file system")
        assert bench.digest() == good
        done = bench.command.run("cache", "prune", "--all", check=False)
        assert_failed(done, 5, f"the store {bench.store} cannot be used", "Read-only file system")
    finally:
        subprocess.run(["umount", "--lazy", bench.store], check=True)


def test_two_builds_at_once_with_one_store(half: Bench, good: str) -> None:
    """Both end well, and what both need is made once."""
    half.forget_software("rootfs")
    done: list[Completed] = []

    def build(number: int) -> None:
        done.append(half.build("--output", half.command.folder / f"layout{number}", check=False))

    threads = [threading.Thread(target=build, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in done:
        assert one.returncode == 0, one.describe()
    told = "".join(one.stderr for one in done)
    assert told.count("build rootfs for linux/arm64:") == 1, told
    for number in range(3):
        index = (half.command.folder / f"layout{number}" / "index.json").read_text()
        assert good in index
    half.assert_sound()


@pytest.mark.slow
def test_two_builds_at_once_with_one_output(half: Bench, good: str) -> None:
    """The second is refused at once, before it works."""
    half.forget_software("rootfs")
    first = subprocess.Popen(
        [*half.command.program, *half.argv()], env=dict(half.command.variables), cwd=half.command.folder,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (half.layout / "oci-layout").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = half.build(check=False)
    assert_failed(second, 5, f"another build is writing to {half.layout}")
    _, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert half.digest() == good
    half.assert_sound()


def test_no_network_at_all(bench: Bench, good: str) -> None:
    """A store that has everything needs no network, not even to see that."""
    done = bench.command.offline().run(*(word for word in bench.argv() if word != "--locked"), check=False)
    assert done.returncode == 0, done.describe()
    assert bench.digest() == good

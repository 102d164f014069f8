"""Programs end when their context ends, with all that they started, and when edgebuild is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebuild import process
from edgebuild.errors import ToolError

ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
# A tree like ninja's: a program, a child in a group of its own, a grandchild that ignores polite signals.
FAMILY = """
import os, signal, sys, time
from pathlib import Path
def note():
    folder = Path(sys.argv[1])
    (folder / f".{os.getpid()}").touch()
    (folder / f".{os.getpid()}").rename(folder / str(os.getpid()))
note()
if os.fork() == 0:
    os.setpgid(0, 0)
    note()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note()
    time.sleep(600)
    os._exit(0)
while len([n for n in os.listdir(sys.argv[1]) if n.isdecimal()]) < 3: time.sleep(0.01)
print("ready", flush=True)
if sys.argv[2] == "stay": time.sleep(600)
os._exit(0)
"""
KILLED = """
import os, sys
from pathlib import Path
from edgebuild import process
process.run([sys.executable, "-I", "-S", "-c", sys.argv[1], sys.argv[2], "stay"],
            environment={"PATH": os.environ["PATH"]}, on_line=lambda line: print(line, flush=True))
"""


def wait_for(done: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def family(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def test_output_exit_code_and_environment() -> None:
    done = process.run(
        ["sh", "-c", "cat; echo to stderr >&2; env; exit 3"],
        environment={"PATH": ENVIRONMENT["PATH"], "ONLY": "this"},
        stdin=b"what it reads\n",
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr == "to stderr\n"
    said = done.stdout.splitlines()
    assert said[0] == "what it reads"
    # sh itself adds PWD; nothing of ours or of the guard is there.
    assert {line.partition("=")[0] for line in said[1:]} <= {"PATH", "ONLY", "PWD", "SHLVL", "_", "OLDPWD"}


def test_a_signal_is_told_as_a_negative_code() -> None:
    done = process.run(["sh", "-c", "kill -SEGV $$"], environment=ENVIRONMENT, check=False)
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize(
    ("script", "ended", "reason"),
    [
        ("echo first >&2; echo ' last ' >&2; echo >&2; exit 3", "exit code 3", "last"),
        ("echo said; exit 3", "exit code 3", "exit code 3"),
        ("kill -KILL $$", "signal 9", "signal 9"),
    ],
)
def test_why_a_program_failed(script: str, ended: str, reason: str) -> None:
    done = process.run(["sh", "-c", script], environment=ENVIRONMENT, check=False)
    assert (done.ended, done.reason) == (ended, reason)


def test_no_descriptor_of_ours_reaches_the_program() -> None:
    done = process.run(["ls", "/proc/self/fd"], environment=ENVIRONMENT)
    # The fourth is the folder that ls reads.
    assert len(done.stdout.split()) <= 4


def test_a_program_that_waits_for_all_children_does_not_wait_for_the_guard() -> None:
    wait = "import os\ntry:\n    os.wait()\nexcept ChildProcessError:\n    print('no child')"
    assert (
        process.run([sys.executable, "-c", wait], environment=ENVIRONMENT, timeout_s=20).stdout
        == "no child\n"
    )


def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        folder = tmp_path / "pids"
        folder.mkdir()
        argv = [sys.executable, "-I", "-S", "-c", FAMILY, str(folder), "go"]
        with process.running(argv, environment=ENVIRONMENT, log=log) as program:
            assert program.wait(20) == 0
            assert [pid for pid in family(folder) if lives(pid)]
    assert len(family(folder)) == 3
    assert not [pid for pid in family(folder) if lives(pid)]


def test_a_time_out_ends_the_whole_family(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-S", "-c", FAMILY, str(tmp_path), "stay"]
    with pytest.raises(ToolError, match="did not end within 2 s"):
        process.run(argv, environment=ENVIRONMENT, timeout_s=2)
    assert len(family(tmp_path)) == 3
    assert not [pid for pid in family(tmp_path) if lives(pid)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_whole_family_ends_with_edgebuild(number: signal.Signals, tmp_path: Path) -> None:
    builder = subprocess.Popen(
        [sys.executable, "-c", KILLED, FAMILY, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"ready\n"
        builder.send_signal(number)
        builder.wait(20)
    assert len(family(tmp_path)) == 3
    wait_for(lambda: not [pid for pid in family(tmp_path) if lives(pid)], "a process outlives edgebuild")


def test_many_at_once(tmp_path: Path) -> None:
    codes: list[int] = []

    def work(number: int) -> None:
        codes.append(
            process.run(["sh", "-c", f"exit {number}"], environment=ENVIRONMENT, check=False).returncode
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(codes) == list(range(16))


def test_what_cannot_be_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no-such-program is not installed"):
        process.run(["no-such-program"], environment=ENVIRONMENT)
    broken = tmp_path / "broken"
    broken.write_bytes(b"#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(ToolError, match="broken cannot be started: No such file or directory"):
        process.run([broken], environment=ENVIRONMENT)
    with pytest.raises(ToolError, match="cannot be started"):
        process.run(["true"], environment=ENVIRONMENT, cwd=tmp_path / "missing")

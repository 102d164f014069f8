"""Running the programs of others, with nothing of the user's environment."""

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.peers.errors import PeerUnavailableError

BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The kernel ends such a server when the test run ends in any way, by SIGKILL too.
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")

_STOP_TIMEOUT_S = 30.0


def loader_argv(prefix: Path, program: str, *, folders: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Start a program of a peer that brings its own libc, by the loader of that: this machine's may be older.

    Args:
        prefix: Folder of the peer.
        program: Path of the program in it.
        folders: Folders of libraries, below the usual one.
    """
    usual = prefix / "usr/lib/x86_64-linux-gnu"
    libraries = ":".join(map(os.fspath, (usual, *(usual / folder for folder in folders))))
    return (
        os.fspath(usual / "ld-linux-x86-64.so.2"),
        "--library-path",
        libraries,
        os.fspath(prefix / program),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a finished program left; both streams decoded as UTF-8 with replacement."""

    args: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    def describe(self) -> str:
        """Tell the whole story: command, exit code and both streams."""
        return (
            f"{shlex.join(self.args)} ended with {self.returncode}\n"
            f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program of a peer.

    Attributes:
        path: The program, for those who start it themselves.
        home: HOME of every run, private to the session.
        prefix: What stands before the arguments: the program itself, or the loader that starts it.
    """

    path: Path
    home: Path
    prefix: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the clean environment that a run gets, with `extra` laid over it."""
        base = {
            "PATH": BASE_PATH,
            "HOME": os.fspath(self.home),
            "LANG": "C.UTF-8",
            "TMPDIR": os.fspath(self.home),
        }
        return {**base, **self.variables, **(extra or {})}

    def run(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        stdin: bytes | None = None,
        timeout_s: float = 120,
        cwd: Path | None = None,
    ) -> Completed:
        """Run it to its end; `env` is laid over a clean environment.

        Raises:
            AssertionError: `check` is set and the exit code is not 0; the message holds both streams.
        """
        return run(
            [*self.prefix, *args],
            env=self.environment(env),
            check=check,
            stdin=stdin,
            timeout_s=timeout_s,
            cwd=cwd,
        )


def run(
    argv: list[str | Path],
    *,
    env: Mapping[str, str],
    check: bool = True,
    stdin: bytes | None = None,
    timeout_s: float = 120,
    cwd: Path | None = None,
) -> Completed:
    """Run a program with exactly the environment given.

    Raises:
        AssertionError: `check` is set and the exit code is not 0, or the time is up.
    """
    command = tuple(os.fspath(arg) for arg in argv)
    try:
        done = subprocess.run(
            command,
            env=dict(env),
            input=stdin or b"",
            capture_output=True,
            check=False,
            timeout=timeout_s,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired as error:
        out, err = ((stream or b"").decode(errors="replace") for stream in (error.stdout, error.stderr))
        raise AssertionError(f"{shlex.join(command)} took over {timeout_s} s\n{out}\n{err}") from error
    result = Completed(
        args=command,
        returncode=done.returncode,
        stdout=done.stdout.decode(errors="replace"),
        stderr=done.stderr.decode(errors="replace"),
    )
    if check and result.returncode != 0:
        raise AssertionError(result.describe())
    return result


@contextmanager
def running(
    argv: Sequence[str | Path], *, log: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server with its output in a file, until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(
    ready: Callable[[], bool], alive: Callable[[], bool], *, log: Path, what: str, timeout_s: float
) -> None:
    """Wait for a server of ours to answer.

    Raises:
        PeerUnavailableError: It ended, or the time is up; the message holds the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        ended = not alive()
        if ended or time.monotonic() > deadline:
            tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:]) if log.exists() else ""
            reason = "ended at once" if ended else f"did not answer within {timeout_s} s"
            raise PeerUnavailableError(f"{what} {reason}; the end of its log:\n{tail}")
        time.sleep(0.02)

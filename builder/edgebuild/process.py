"""The one place that starts programs.

Every program gets a session of its own and a guard (process_guard.py), so that it ends with all its children when its
context ends, by an interrupt or a time-out too, and when this process is killed.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from edgebuild.errors import ToolError

_TAIL_LINES = 12
_STOP_GRACE_S = 5.0
_GUARD = str(Path(__file__).with_name("process_guard.py"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a finished program left.

    Attributes:
        argv: What was run.
        stdout: Its standard output, decoded as UTF-8 with replacement.
        stderr: Its standard error, likewise.
        returncode: Its exit code; negative for a signal.
    """

    argv: tuple[str, ...]
    stdout: str
    stderr: str
    returncode: int

    @property
    def ended(self) -> str:
        """How it ended: "exit code 2" or "signal 9"."""
        return f"exit code {self.returncode}" if self.returncode >= 0 else f"signal {-self.returncode}"

    @property
    def reason(self) -> str:
        """Why it failed, in one line: the last that it said on standard error, else how it ended."""
        said = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return said[-1] if said else self.ended


class Stopping(Protocol):
    """What ends a program from another thread, e.g. network.Stop."""

    def ending(self, end: Callable[[], None], /) -> AbstractContextManager[None]:
        """Have `end` called, from any thread, when the program is to end while the context lasts."""


def find_program(name: str, *, path: str | None = None) -> Path | None:
    """Return the absolute path of a program, or None.

    Args:
        name: The program's name.
        path: A PATH to search in; None searches the one of this process.
    """
    found = shutil.which(name, path=path)
    return None if found is None else Path(found).absolute()


def run(  # noqa: PLR0913 - the one place that starts programs takes what any of them needs
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    stdin: bytes = b"",
    timeout_s: float | None = None,
    hint: str = "",
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
    stop: Stopping | None = None,
) -> Completed:
    """Run a program to its end and return what it said.

    Args:
        argv: Program and arguments.
        environment: The whole environment of the program; nothing is inherited.
        cwd: Its working directory.
        stdin: What it reads.
        timeout_s: Seconds after which it and its children are killed.
        hint: What the user can do when it fails.
        check: Whether a non-zero exit is an error.
        on_line: Called with each line of the standard output while it runs (progress); called on this thread.
        stop: Ends it from another thread; it then counts as failed by a signal.

    Raises:
        ToolError: It cannot be started, fails or takes too long.
    """
    words = tuple(os.fspath(word) for word in argv)
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as source:
        source.write(stdin)
        source.seek(0)
        with (
            _started(
                words,
                environment=environment,
                cwd=cwd,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=errors,
                hint=hint,
            ) as process,
            stop.ending(lambda: _terminate(process)) if stop else nullcontext(),
        ):
            try:
                output = (
                    _read_lines(process, on_line) if on_line else process.communicate(timeout=timeout_s)[0]
                )
                process.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired as error:
                raise ToolError(f"{words[0]} did not end within {timeout_s:.0f} s", hint=hint) from error
        errors.seek(0)
        completed = Completed(
            argv=words,
            stdout=output.decode(errors="replace"),
            stderr=errors.read().decode(errors="replace"),
            returncode=process.returncode,
        )
    if check and completed.returncode != 0:
        raise ToolError(_failure(completed), hint=hint or f"run it by hand: {shlex.join(words)}")
    return completed


@contextmanager
def running(
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    log: IO[bytes],
    cwd: Path | None = None,
    hint: str = "",
) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a program (a server) running while the context lasts; end it and its children on the way out.

    Args:
        argv: Program and arguments.
        environment: Its whole environment.
        log: Open binary file that takes its standard output and error.
        cwd: Its working directory.
        hint: What the user can do when it cannot be started.

    Raises:
        ToolError: It cannot be started.
    """
    words = tuple(os.fspath(word) for word in argv)
    with _started(
        words, environment=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, hint=hint
    ) as process:
        yield process


@contextmanager
def _started(
    words: tuple[str, ...],
    *,
    environment: Mapping[str, str],
    cwd: Path | None,
    stdin: IO[bytes] | int,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    hint: str,
) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.which(words[0], path=environment.get("PATH"))
    if program is None:
        raise ToolError(f"{words[0]} is not installed", hint=hint or f"install {words[0]} and try again")
    ours, theirs = socket.socketpair()
    with ours:
        try:
            with theirs:
                process = subprocess.Popen(
                    (sys.executable, "-I", "-S", _GUARD, str(theirs.fileno()), program, *words),
                    env=dict(environment),
                    cwd=cwd,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except OSError as error:
            raise ToolError(f"{words[0]} cannot be started: {error.strerror}", hint=hint) from error
        with process:
            try:
                yield process
            finally:
                _stop(process, ours)


def _read_lines(process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> bytes:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        on_line(line.decode(errors="replace").rstrip())
    return b"".join(lines)


def _stop(process: subprocess.Popen[bytes], life: socket.socket) -> None:
    """End the program politely, then by force, then whatever it left behind. A process that is gone is fine."""
    if process.poll() is None:
        _terminate(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_GRACE_S)
    life.shutdown(socket.SHUT_WR)
    # The guard closes its end when nothing of the session lives.
    life.recv(1)


def _terminate(process: subprocess.Popen[bytes]) -> None:
    # Not yet waited for, so that the number is still its own.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def _failure(completed: Completed) -> str:
    said = [line.strip() for line in (completed.stderr or completed.stdout).splitlines() if line.strip()]
    last = " | ".join(said[-_TAIL_LINES:])
    failed = f"{Path(completed.argv[0]).name} failed ({completed.ended})"
    return f"{failed}: {last}" if last else failed

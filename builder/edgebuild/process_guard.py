"""Becomes a program, and sees to it that nothing which the program started outlives edgebuild.

Called by process.py as `process_guard.py SOCKET PROGRAM ARGV0 [ARGUMENT…]`, as leader of a new session and with one end
of a socket pair; it imports nothing of edgebuild.

1. A guard is forked, in a process group of its own, so that signals to the program's group do not reach it. Init becomes
   its parent: a program that waits for all of its children must not wait for it.
2. This process becomes the program.
3. When edgebuild closes its end of the socket, or dies in whatever way, SIGKILL included, the guard kills every process of
   the session, whichever group it is in (ninja gives each compiler one), and ends. Then its own end is closed too.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_KILL_TIMEOUT_S = 10.0
_PAUSE_S = 0.002
_CANNOT_START = 127


def main(descriptor: int, program: str, argv: list[str]) -> int:
    """Fork the guard and become the program; returns only when that fails."""
    # Python may have set LC_CTYPE (PEP 538); the program gets what edgebuild gave.
    pairs = Path("/proc/self/environ").read_bytes().split(b"\0")[:-1]
    environment = {name: value for name, _, value in (pair.partition(b"=") for pair in pairs)}
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keyword
    if (between := os.fork()) == 0:
        if (guard := os.fork()) == 0:
            _guard(descriptor)
        with suppress(ProcessLookupError):
            os.setpgid(guard, 0)
        os._exit(0)
    os.waitpid(between, 0)
    try:
        os.execve(program, argv, environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{program} cannot be started: {error.strerror}\n")
    return _CANNOT_START


def _guard(descriptor: int) -> None:
    """Wait for the other end to close, then kill all others of the session; never returns."""
    # Whoever reads what the program writes must not wait for the guard.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    with socket.socket(fileno=descriptor) as end, suppress(OSError):
        end.recv(1)
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while (others := list(_others(os.getsid(0)))) and time.monotonic() < deadline:
            for process in others:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(_PAUSE_S)
    os._exit(0)


def _others(session: int) -> Iterator[int]:
    """Yield the living processes of the session, this one excepted; proc(5), /proc/pid/stat."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            # The name of the program, in brackets, may hold spaces and brackets itself.
            state, _parent, _group, own, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(own) == session and state not in {"Z", "X"}:
                yield int(folder.name)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))

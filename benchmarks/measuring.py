"""Runs a program and tells what it took: time on the clock, processor time, and the memory of all its processes.

Memory is the largest sum, over the program and all its descendants, of their proportional set sizes (proc(5), Pss in
smaps_rollup: shared pages count once), looked at every few milliseconds, or the program's own peak (VmHWM) where that is
larger. Compilers and the programs under test in an emulator are no part of the builder and are left out with their
children.
"""

import ctypes
import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.02
# The compiler with its parts, and what runs in the emulator of a smoke test: the image, not the builder.
_NOT_OURS = re.compile(r"/(zig|ninja|cmake|\.qemu)$")
# kcmp(2), for which the C library has no function.
_KCMP = {"x86_64": 312, "aarch64": 272}[platform.machine()]
_KCMP_VM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run took.

    Attributes:
        wall_s: Seconds on the clock.
        cpu_s: Seconds of processors, of the program and of all that it waited for.
        peak_bytes: Memory of the process tree; 0 when it was not watched.
        at_peak: Which programs had how much of it then.
        stdout: What it wrote.
        stderr: Likewise.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    at_peak: str
    stdout: str
    stderr: str


def measure(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    watch: bool = False,
) -> Run:
    """Run a program to its end.

    Args:
        argv: The program and its arguments.
        cwd: Its working directory.
        environment: Its whole environment; None gives it this one's.
        watch: Whether memory is looked at meanwhile, which itself takes some processor time: not for timing.

    Raises:
        SystemExit: It failed.
    """
    words = [os.fspath(word) for word in argv]
    out, err = cwd / ".benchmark-stdout", cwd / ".benchmark-stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        begin_s = time.monotonic()
        process = subprocess.Popen(
            words, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
        watcher = PeakWatcher(process.pid) if watch else None
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - begin_s
        process.returncode = os.waitstatus_to_exitcode(status)
    # ru_maxrss would be that of this process at least, from which the program was forked.
    peak_bytes = watcher.stop() if watcher else 0
    run = Run(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=peak_bytes,
        at_peak=watcher.at_peak if watcher else "",
        stdout=out.read_text("utf-8", "replace"),
        stderr=err.read_text("utf-8", "replace"),
    )
    out.unlink()
    err.unlink()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed ({process.returncode}): {run.stderr.strip()[-2000:]}")
    return run


def repeat(
    rounds: int, action: Callable[[], Run], *, between: Callable[[], object] = lambda: None
) -> list[Run]:
    """Run something once to warm up, then `rounds` times, and return these."""
    runs = []
    for _ in range(rounds + 1):
        between()
        runs.append(action())
    return runs[1:]


def walls(runs: Sequence[Run]) -> tuple[float, ...]:
    """The clock's seconds of several runs."""
    return tuple(run.wall_s for run in runs)


class PeakWatcher:
    """Looks at a process and its descendants until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_bytes = 0
        self.at_peak = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop, and return the peak in bytes."""
        self._done.set()
        self._thread.join()
        return self._peak_bytes

    def _watch(self) -> None:
        while not self._done.wait(_POLL_S):
            sizes = {pid: _field(pid, "smaps_rollup", "Pss:") for pid in _tree(self._pid)}
            total = max(sum(sizes.values()), status_bytes(self._pid, "VmHWM:"))
            if total > self._peak_bytes:
                self._peak_bytes, self.at_peak = total, _describe(sizes)


def _describe(sizes: Mapping[int, int]) -> str:
    """Name what takes a megabyte or more, the largest first."""
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{Path(_program(pid)).name} {size / 1e6:.0f} MB" for pid, size in largest if size >= 1_000_000
    )


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants, without what is not ours."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text("ascii").split():
                if not _NOT_OURS.search(_program(int(child))) and not _is_one_memory(pid, int(child)):
                    yield from _tree(int(child))


def _is_one_memory(pid: int, child: int) -> bool:
    """Whether a child lives in the memory of its parent, as it does for a moment before it becomes another program (vfork(2))."""
    return bool(ctypes.CDLL(None).syscall(_KCMP, pid, child, _KCMP_VM, 0, 0) == 0)


def _program(pid: int) -> str:
    """The path by which a process was started; its executable may be another, as for what an emulator runs."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    return ""


def status_bytes(pid: int, name: str) -> int:
    """Read a size from a process's status (proc(5)), such as "VmRSS:"; 0 when the process is gone."""
    return _field(pid, "status", name)


def _field(pid: int, file: str, name: str) -> int:
    """Read a size in kB from a file of /proc; 0 when the process is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text("ascii", "replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0

"""Ends a Python program at its n-th change of files: found on PYTHONPATH, before the program's first line.

KILLPOINT_FOLDERS   folders whose changes count, separated by colons
KILLPOINT_NUMBER    which change is the last; 0 counts only
KILLPOINT_SIGNAL    number of the signal that the program gets just before that change
KILLPOINT_LOG       file that takes one line a change

Changes are seen through audit hooks (PEP 578) and the signal is real, so that the program dies where a power cut or an
impatient user would have ended it.
"""

import os
import sys

_FOLDERS = tuple(os.environ.get("KILLPOINT_FOLDERS", "").split(":"))
_NUMBER = int(os.environ.get("KILLPOINT_NUMBER", "0"))
_SIGNAL = int(os.environ.get("KILLPOINT_SIGNAL", "9"))
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = frozenset(
    {
        "os.chmod",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.symlink",
        "os.truncate",
        "os.utime",
    }
)


class _Hook:
    def __init__(self, log: int) -> None:
        self.log = log
        self.count = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _mode, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event in _CHANGES:
            path = arguments[0]
        elif event == "subprocess.Popen":
            path = _FOLDERS[0]
        else:
            return
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(_FOLDERS):
            return
        self.count += 1
        os.write(self.log, f"{event} {os.fspath(path)}\n".encode(errors="replace"))
        if self.count == _NUMBER:
            os.kill(os.getpid(), _SIGNAL)


if log := os.environ.get("KILLPOINT_LOG"):
    sys.addaudithook(_Hook(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)))

"""The Python of workers that import llama.cpp's library: edgebuild's own, with nothing of the user's but PATH."""

import sys
from pathlib import Path

from edgebuild.host import Host

# -B: bytecode beside the library would be taken for damage of the store, and llama.cpp compiled again.
LIBRARY_PYTHON: tuple[str, ...] = (sys.executable, "-P", "-B")


def library_environment(host: Host, *folders: Path) -> dict[str, str]:
    """Make the whole environment of such a worker.

    Args:
        host: This machine.
        folders: Where it imports from: the library's folder first.
    """
    return {
        "PYTHONPATH": ":".join(str(folder) for folder in folders),
        "PATH": host.environment.get("PATH", ""),
        "LANG": "C.UTF-8",
    }

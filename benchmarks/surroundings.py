"""Under which conditions figures were measured."""

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgebuild import __version__

ROOT = Path(__file__).parents[1]


def load_average() -> float:
    """Mean number of processes that wanted a processor during the last minute."""
    return os.getloadavg()[0]


def describe() -> dict[str, Any]:
    """Describe machine and versions."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "edgebuild": __version__,
        "commit": _commit(),
        "load_at_start": round(load_average(), 2),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """Name the commit, with "+" when files differ from it; "" outside of a checkout."""
    git = ("git", "-C", os.fspath(ROOT))
    found = subprocess.run(
        (*git, "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        (*git, "status", "--porcelain", "--untracked-files=no"), capture_output=True, text=True, check=False
    )
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")

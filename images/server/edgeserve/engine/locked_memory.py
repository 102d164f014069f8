"""Keeps the process in memory: weights, cache and code are never swapped out or dropped."""

from __future__ import annotations

import ctypes
import os
import re
import resource
from pathlib import Path
from typing import Final

from edgeserve.engine.protocol import EngineError

# linux/mman.h. Pages are locked as they come into use: nothing grows by being locked (mlockall(2), MCL_ONFAULT).
_MCL_CURRENT, _MCL_ONFAULT = 1, 4
_VIRTUAL: Final = re.compile(r"^VmSize:\s*(\d+) kB$", re.MULTILINE)


def lock_memory() -> None:
    """Lock all memory of this process, once model and cache are there.

    llama.cpp's own locking leaves out weights that it repacks for the processor, and goes on where it fails.

    Raises:
        EngineError: The kernel refuses.
    """
    if ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_ONFAULT) == 0:
        return
    reason = os.strerror(ctypes.get_errno())
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    allowed = "any number of" if limit == resource.RLIM_INFINITY else f"{limit >> 20}"
    found = _VIRTUAL.search(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    size = int(found[1]) >> 10 if found else 0
    raise EngineError(
        f"engine.mlock: {reason}: this process has {size} MiB of address space and may lock {allowed} MiB "
        "(RLIMIT_MEMLOCK); raise the limit (docker run --ulimit memlock=-1, LimitMEMLOCK=infinity in systemd) or set mlock to false"
    )

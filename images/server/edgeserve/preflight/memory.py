"""Is there the memory that the plan counted on: within the container's limit, and free on the machine?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgeserve import exits
from edgeserve.cgroups import has_memory_groups, memory_group
from edgeserve.kernel import ROOT, machine_memory, process_memory
from edgeserve.preflight.results import Finding, Result
from edgeserve.settings import MemorySettings

_MIB: Final = 1 << 20


def check_memory(settings: MemorySettings, root: Path = ROOT) -> Result:
    """Compare limit and available memory with what the plan says; a plan that says nothing is compared with nothing."""
    group = memory_group(root)
    limit = None if group is None else group.limit_bytes()
    machine, own = machine_memory(root), process_memory(root)
    taken = 0 if own is None else own.resident_bytes
    available = None if machine is None else machine[1] + taken
    seen = {
        "need_mib": settings.need_bytes // _MIB or "unplanned",
        "limit_mib": "none" if limit is None else limit // _MIB,
        "available_mib": "unknown" if available is None else available // _MIB,
    }
    findings = (*_shortages(settings, limit, available), *_unaccounted(root))
    return Result(check="memory", seen=seen, findings=findings)


def _shortages(settings: MemorySettings, limit: int | None, available: int | None) -> Iterator[Finding]:
    need, code = settings.need_bytes, exits.MEMORY if settings.check == "refuse" else exits.OK
    smaller = "build the image with less context, fewer slots or a smaller quantization"
    if limit is not None and limit < need:
        yield Finding(
            problem=f"the container may use {limit // _MIB} MiB, the plan needs {need // _MIB} MiB",
            remedy=f"raise its memory limit (docker run --memory), or {smaller}",
            exit_code=code,
        )
    if available is not None and available < need:
        yield Finding(
            problem=f"{available // _MIB} MiB of memory are available, the plan needs {need // _MIB} MiB",
            remedy=f"stop other programs, {smaller}, or start all the same with EDGE_MEMORY_CHECK=warn",
            exit_code=code,
        )


def _unaccounted(root: Path) -> Iterator[Finding]:
    if has_memory_groups(root) is False:
        yield Finding(
            problem="this kernel has no memory control group, so a container's memory limit does nothing",
            remedy="add cgroup_enable=memory to the kernel's command line (Raspberry Pi OS: /boot/firmware/cmdline.txt)",
        )

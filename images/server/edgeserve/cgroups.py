"""The memory limit of this process's control group, version 1 or 2, and whether the kernel keeps to any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeserve.kernel import ROOT, mounts, read_number, read_text

# Version 1 says "no limit" with the largest multiple of a page below 2**63.
_UNLIMITED: Final = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGroup:
    """The control group that accounts this process's memory: its folder, and the folder of the whole hierarchy."""

    version: int
    folder: Path
    top: Path

    def limit_bytes(self) -> int | None:
        """Return the smallest limit of the group and those that hold it; None without one."""
        if self.version == 1:
            # Over all ancestors, also those that a container does not see (Linux Documentation/…/cgroup-v1/memory.rst).
            match = re.search(
                r"^hierarchical_memory_limit (\d+)$",
                read_text(self.folder / "memory.stat") or "",
                re.MULTILINE,
            )
            limits = [int(match[1])] if match else []
        else:
            folders = (self.folder, *self.folder.parents)
            inside = (folder for folder in folders if folder.is_relative_to(self.top))
            limits = [limit for folder in inside if (limit := read_number(folder / "memory.max")) is not None]
        smallest = min(limits, default=_UNLIMITED)
        return smallest if smallest < _UNLIMITED else None


def memory_group(root: Path = ROOT) -> MemoryGroup | None:
    """Find the group through the mounts that this process sees (cgroups(7)); None if it sees none."""
    paths = _paths(root)
    for mount in mounts(root):
        top = root / mount.point.lstrip("/")
        if mount.kind == "cgroup" and "memory" in mount.options:
            return MemoryGroup(version=1, folder=_below(top, mount.shown, paths.get("memory", "/")), top=top)
        if mount.kind == "cgroup2" and "memory" in (read_text(top / "cgroup.controllers") or "").split():
            return MemoryGroup(version=2, folder=_below(top, mount.shown, paths.get("", "/")), top=top)
    return None


def has_memory_groups(root: Path = ROOT) -> bool | None:
    """Say whether this kernel can limit a group's memory; None where it does not tell.

    Raspberry Pi OS starts with the controller off.
    """
    if memory_group(root) is not None:
        return True
    controllers = read_text(root / "sys/fs/cgroup/cgroup.controllers")
    if controllers is not None:
        return False
    match = re.search(r"^memory\s+\d+\s+\d+\s+([01])$", read_text(root / "proc/cgroups") or "", re.MULTILINE)
    return None if match is None else match[1] == "1"


def _paths(root: Path) -> dict[str, str]:
    """Read the group's path by controller; that of version 2 has the empty name."""
    found: dict[str, str] = {}
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def _below(top: Path, shown: str, path: str) -> Path:
    """Place a group's path below the mount, which may show only a part of the hierarchy."""
    if shown != "/" and (path + "/").startswith(shown.rstrip("/") + "/"):
        path = path[len(shown) :]
    folder = top / path.lstrip("/")
    # A path outside the mount ("/../…" in a namespace) or of other names: the mount's own group is the nearest that shows.
    return folder if ".." not in folder.parts and folder.is_dir() else top

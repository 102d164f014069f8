"""A control group with a memory limit, as a container engine makes one: version 2, or 1 where that has the controller.

Needs root and a hierarchy that may be written to. Swap is left out, so that what does not fit is killed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.peers.errors import PeerUnavailableError

_MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedGroup:
    """A group whose processes may take so much memory and no more.

    Attributes:
        folder: Its folder in the hierarchy.
        version: Of control groups: 1 or 2.
    """

    folder: Path
    version: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command begins with to run in the group."""
        return ("sh", "-c", f'echo $$ > "{self.folder}/cgroup.procs" && exec "$@"', "sh")

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        text = (self.folder / ("memory.events" if self.version == 2 else "memory.oom_control")).read_text()
        found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        assert found is not None, text
        return int(found[1])


@contextmanager
def limited_group(name: str, limit_bytes: int) -> Iterator[LimitedGroup]:
    """Make a group with a limit, and remove it at the end.

    Raises:
        PeerUnavailableError: This machine has no memory controller, or does not let us make groups.
    """
    top, version = _hierarchy()
    folder = top / f"edgebuild-{name}"
    try:
        if version == 2:
            (top / "cgroup.subtree_control").write_text("+memory")
        folder.mkdir(exist_ok=True)
        limit = "memory.max" if version == 2 else "memory.limit_in_bytes"
        (folder / limit).write_text(str(limit_bytes))
        swap = folder / ("memory.swap.max" if version == 2 else "memory.memsw.limit_in_bytes")
        if swap.exists():
            swap.write_text("0" if version == 2 else str(limit_bytes))
    except OSError as error:
        raise PeerUnavailableError(
            f"no control group can be limited in {top} (version {version}): {error}; run as root with a writable hierarchy"
        ) from error
    try:
        yield LimitedGroup(folder=folder, version=version)
    finally:
        folder.rmdir()


def _hierarchy() -> tuple[Path, int]:
    """Find the hierarchy that has the memory controller."""
    for line in _MOUNTS.read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        top = Path(point)
        if kind == "cgroup2" and "memory" in (top / "cgroup.controllers").read_text().split():
            return top, 2
        if kind == "cgroup" and "memory" in options.split(","):
            return top, 1
    raise PeerUnavailableError("this machine has no control groups with a memory controller")

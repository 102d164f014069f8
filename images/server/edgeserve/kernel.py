"""What the kernel tells of this machine and this process, read from /proc and /sys; nothing here needs a privilege.

Where the kernel does not tell, there is nothing or None: a container may hide anything. Tests of other machines give
another folder.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")
THERMAL: Final = Path("/sys/class/thermal")
STAT: Final = Path("/proc/stat")
_AT_HWCAP, _AT_HWCAP2 = 16, 26  # getauxval(3)
# Bits of Linux arch/arm64/include/uapi/asm/hwcap.h, as (word, bit).
_ARM_FEATURES: Final[Mapping[str, tuple[int, int]]] = {
    "sha2": (0, 6),
    "asimdhp": (0, 10),
    "asimddp": (0, 20),
    "sve": (0, 22),
    "sve2": (1, 1),
    "i8mm": (1, 13),
}
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_STATUS_LINE: Final = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Memory of this process in bytes; `file_bytes` are mapped files such as the weights, shared and reclaimable."""

    resident_bytes: int
    peak_bytes: int
    anonymous_bytes: int
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """One sensor; `zone` is its number in the kernel, `kind` what the driver calls it."""

    zone: str
    kind: str
    celsius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSeconds:
    """Time of all processors together since the device started, in seconds; waiting for a disk counts as idle."""

    busy: float
    idle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount that this process sees: the part of the file system that it shows, where, of what kind, with what options."""

    shown: str
    point: str
    kind: str
    options: tuple[str, ...]


def read_text(path: Path) -> str | None:
    """Read a file of the kernel's; None if it is not there or not ours to read."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """Read a file that holds one whole number."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def process_memory(root: Path = ROOT) -> ProcessMemory | None:
    """Read this process's memory (proc_pid_status(5))."""
    sizes = _sizes(root / "proc/self/status")
    if "VmRSS" not in sizes:
        return None
    return ProcessMemory(
        resident_bytes=sizes["VmRSS"],
        peak_bytes=sizes.get("VmHWM", sizes["VmRSS"]),
        anonymous_bytes=sizes.get("RssAnon", 0),
        file_bytes=sizes.get("RssFile", 0),
    )


def machine_memory(root: Path = ROOT) -> tuple[int, int] | None:
    """Read the machine's memory (proc_meminfo(5)): all of it, and what programs could still take, in bytes."""
    sizes = _sizes(root / "proc/meminfo")
    if "MemAvailable" not in sizes:
        return None
    return sizes.get("MemTotal", 0), sizes["MemAvailable"]


def _sizes(path: Path) -> dict[str, int]:
    return {name: int(value) * 1024 for name, value in _STATUS_LINE.findall(read_text(path) or "")}


def read_temperatures(folder: Path = THERMAL) -> Iterator[Temperature]:
    """Read every thermal zone that can be read; a sensor that is switched off has none.

    Source: Linux, Documentation/driver-api/thermal/sysfs-api.rst (`temp` in thousandths of a degree Celsius).
    """
    for zone in sorted(folder.glob("thermal_zone*")):
        try:
            kind = (zone / "type").read_text("ascii", "replace").strip()
            celsius = int((zone / "temp").read_bytes()) / 1000
        except (OSError, ValueError):
            continue
        yield Temperature(zone=zone.name.removeprefix("thermal_zone"), kind=kind, celsius=celsius)


def read_cpu_seconds(path: Path = STAT) -> CpuSeconds | None:
    """Read the first line of /proc/stat, which in a container is the whole device's too.

    Source: Linux, Documentation/filesystems/proc.rst (user, nice, system, idle, iowait, irq, softirq, steal).
    """
    try:
        with path.open("rb") as file:
            name, *fields = file.readline().split()
        ticks = [int(field) for field in fields[:8]]
    except (OSError, ValueError):
        return None
    if name != b"cpu" or len(ticks) < 8:
        return None
    per_second = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return CpuSeconds(busy=(sum(ticks) - idle) / per_second, idle=idle / per_second)


def mounts(root: Path = ROOT) -> Iterator[Mount]:
    """Read the mounts (proc_pid_mountinfo(5)); the options are those of the file system, not of the mount."""
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        here, there = (
            [_ESCAPE.sub(lambda match: chr(int(match[1], 8)), field) for field in part.split()]
            for part in (left, right)
        )
        if len(here) > 4 and len(there) > 2:
            yield Mount(shown=here[3], point=here[4], kind=there[0], options=tuple(there[2].split(",")))


def processor_name(root: Path = ROOT) -> str:
    """Name the processor as /proc/cpuinfo does; of one that it does not name, the architecture."""
    text = read_text(root / "proc/cpuinfo") or ""
    match = re.search(r"^(?:model name|Model)\s*:\s*(\S.*)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def processor_features(root: Path = ROOT) -> frozenset[str] | None:
    """Name the processor's features as /proc/cpuinfo does; None where the kernel does not tell.

    On arm64 they come from the auxiliary vector, which an emulator fills in for the processor that it emulates.
    """
    if platform.machine() == "aarch64":
        words = tuple(_auxiliary(kind) for kind in (_AT_HWCAP, _AT_HWCAP2))
        return frozenset(name for name, (word, bit) in _ARM_FEATURES.items() if words[word] >> bit & 1)
    text = read_text(root / "proc/cpuinfo") or ""
    match = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else None


def _auxiliary(kind: int) -> int:
    function = ctypes.CDLL(None).getauxval
    function.argtypes, function.restype = [ctypes.c_ulong], ctypes.c_ulong
    return int(function(kind))

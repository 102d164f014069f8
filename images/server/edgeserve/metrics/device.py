"""What the kernel tells of the device: temperatures and the use of its processors; nothing where it does not tell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

THERMAL: Final = Path("/sys/class/thermal")
STAT: Final = Path("/proc/stat")


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

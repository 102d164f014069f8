"""Energy and temperature while something runs, where the kernel tells: a thread that looks ten times a second.

Board sensors come first, since they measure what the device draws: ina3221 and its kin, as on NVIDIA Jetson
(Documentation/hwmon/ina3221.rst: in*_input in mV, curr*_input in mA). Else the processor packages' own counters, RAPL
(Documentation/power/powercap/powercap.rst: energy_uj), which only root may read and containers hide.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edgeserve.kernel import ROOT, read_number, read_temperatures, read_text

_INTERVAL_S: Final = 0.1
# Of a board that measures its whole input this rail is all; the others are parts of it (Jetson Orin).
_WHOLE_BOARD: Final = "VDD_IN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What was drawn between start and stop; `source` says by what: a board's rails, or processor packages."""

    source: str
    joules: float
    seconds: float


class _Power:
    """A board's power sensors, integrated."""

    def __init__(self, rails: dict[str, Callable[[], float | None]]) -> None:
        self.source = "board:" + ",".join(sorted(rails))
        self.joules = 0.0
        self._rails = rails
        self._last: tuple[float, float] | None = None

    def look(self) -> None:
        values = [value for read in self._rails.values() if (value := read()) is not None]
        if not values:
            return
        now, watts = time.monotonic(), sum(values)
        if self._last is not None:
            self.joules += (now - self._last[0]) * (watts + self._last[1]) / 2
        self._last = now, watts


class _Packages:
    """RAPL's counters of processor packages, which wrap within minutes."""

    def __init__(self, zones: dict[str, Path]) -> None:
        self.source = "rapl:" + ",".join(sorted(zones))
        self.joules = 0.0
        self._zones = zones
        self._last: dict[str, int] = {}

    def look(self) -> None:
        for name, folder in self._zones.items():
            now = read_number(folder / "energy_uj")
            if now is None:
                continue
            before = self._last.get(name, now)
            wrap = read_number(folder / "max_energy_range_uj") or 0
            self.joules += (now - before if now >= before else now + wrap - before) / 1e6
            self._last[name] = now


def _find(root: Path) -> _Power | _Packages | None:
    rails: dict[str, Callable[[], float | None]] = {}
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if (read_text(folder / "name") or "").strip().startswith("ina"):
            rails |= _rails(folder)
    if rails:
        return _Power({_WHOLE_BOARD: rails[_WHOLE_BOARD]} if _WHOLE_BOARD in rails else rails)
    zones = {}
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = (read_text(folder / "name") or "").strip()
        # Only packages: their parts (core, dram) and the platform would be counted twice.
        if name.startswith("package") and read_number(folder / "energy_uj") is not None:
            zones[name] = folder
    return _Packages(zones) if zones else None


def _rails(folder: Path) -> dict[str, Callable[[], float | None]]:
    """Find a sensor's rails: power in µW where the driver gives it, else voltage times current."""
    found: dict[str, Callable[[], float | None]] = {}
    for path in sorted(folder.glob("curr*_input")):
        number = path.name.removeprefix("curr").removesuffix("_input")
        label = (read_text(folder / f"in{number}_label") or f"{folder.name}.{number}").strip()
        power, volts = folder / f"power{number}_input", folder / f"in{number}_input"
        if power.exists():
            found[label] = lambda power=power: _scaled(power, 1e-6)  # type: ignore[misc]
        elif volts.exists():
            found[label] = lambda volts=volts, amperes=path: _product(volts, amperes)  # type: ignore[misc]
    return found


def _scaled(path: Path, factor: float) -> float | None:
    value = read_number(path)
    return None if value is None else value * factor


def _product(millivolts: Path, milliamperes: Path) -> float | None:
    volts, amperes = read_number(millivolts), read_number(milliamperes)
    return None if volts is None or amperes is None else volts * amperes / 1e6


class DeviceWatch:
    """Watches energy and temperature while its context lasts; both are None where the kernel does not tell."""

    def __init__(self, root: Path = ROOT) -> None:
        self._thermal = root / "sys/class/thermal"
        self._meter = _find(root)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._started = self._seconds = 0.0
        self.celsius_before: float | None = None
        self.celsius_highest: float | None = None

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._look()
        self.celsius_before = self.celsius_highest
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._seconds = time.monotonic() - self._started

    @property
    def energy(self) -> Energy | None:
        """What was drawn, once the context has ended."""
        if self._meter is None:
            return None
        return Energy(source=self._meter.source, joules=self._meter.joules, seconds=self._seconds)

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._look()

    def _look(self) -> None:
        if self._meter is not None:
            self._meter.look()
        now = [one.celsius for one in read_temperatures(self._thermal)]
        if now:
            self.celsius_highest = max(*now, self.celsius_highest or now[0])

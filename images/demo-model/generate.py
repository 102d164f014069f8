"""Synthetic task of the demo model: one line of sensor readings in, one short alert out.

Rules. A line holds readings of a drone or a robot in any order. Each reading that breaks its limit gives one
sentence; the sentences stand in the order of severity below, whatever the order of the readings. A reading
that is absent gives nothing. A line that breaks no limit gives "All normal."

| severity | reading  | limit                        | sentence                        |
|----------|----------|------------------------------|---------------------------------|
| 1        | obstacle | nearer than 40 m             | Obstacle ahead, 30 m left.      |
| 2        | battery  | below 10 %                   | Battery critical, 8 %.          |
| 3        | tilt     | above 30 deg                 | Tilt high, 35 deg.              |
| 4        | gps      | no position                  | GPS lost.                       |
| 5        | battery  | 10 % or more, below 20 %     | Battery low, 18 %.              |
| 6        | temp     | above 70 C                   | Too hot, 75 C.                  |
| 7        | wind     | above 12 m/s                 | Wind strong, 15 m/s.            |
| 8        | link     | below 30 %                   | Link weak, 25 %.                |

Altitude, speed, heading and the vehicle's number are there to be ignored. Names have synonyms ("battery",
"batt", "bat"), and a line has one style throughout: how a name is joined to its value, whether a space stands
before the unit, and the separator. Numbers in a sentence are copied from the line.

A line is held out when the first byte of the SHA-256 of its text is below `HELD_OUT_BYTES`. Training never
sees such a line, whatever its seed, and the held-out file has no other.

    python generate.py heldout > heldout.jsonl
    python generate.py train --count 5
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

HELD_OUT_BYTES = 8
HELD_OUT_SEED = 20261123
HELD_OUT_LINES = 1000
ALL_NORMAL = "All normal."

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One line of readings and the alert that the rules give for it."""

    prompt: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reading before it is written down.

    `severity` is None when the reading is within its limit; else `sentence` is what the alert says about it.
    """

    names: tuple[str, ...]
    value: str
    unit: str = ""
    suffix: str = ""
    severity: int | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How one line is written: the same for all of its readings."""

    joiner: str
    unit_gap: str
    separator: str


def training_examples(seed: int, *, presence: float = 1.0) -> Iterator[Example]:
    """Yield training examples without end; none of them is held out.

    Args:
        seed: Any integer; equal seeds give equal examples on every Python since 3.2.
        presence: See `make_example`.
    """
    rng = Random(seed)
    while True:
        example = make_example(rng, presence=presence)
        if not is_held_out(example.prompt):
            yield example


def held_out_examples(count: int = HELD_OUT_LINES) -> tuple[Example, ...]:
    """Make the first `count` distinct held-out examples, always the same ones."""
    rng = Random(HELD_OUT_SEED)
    found: dict[str, Example] = {}
    while len(found) < count:
        example = make_example(rng)
        if is_held_out(example.prompt):
            found.setdefault(example.prompt, example)
    return tuple(found.values())


def is_held_out(prompt: str) -> bool:
    """Tell whether a line belongs to the held-out set: 8 of 256 lines do, chosen by their SHA-256."""
    return hashlib.sha256(prompt.encode()).digest()[0] < HELD_OUT_BYTES


def make_example(rng: Random, *, presence: float = 1.0) -> Example:
    """Make one line and its alert; held out or not is for the caller to ask.

    Args:
        rng: Source of every choice.
        presence: Factor of the chance that a reading is there; below 1 the lines are shorter than those of the
            held-out set, which is where training begins.
    """
    # Several rates, so that lines with no alert and lines with many are both common.
    alarm_rate = _pick(rng, (0.0, 0.2, 0.35, 0.5, 0.7))
    readings = [
        make(rng, alarm=rng.random() < alarm_rate)
        for make in (_obstacle, _battery, _tilt, _gps, _temp, _wind, _link)
        if rng.random() < 0.7 * presence
    ]
    readings += [make(rng) for make in (_altitude, _speed, _heading) if rng.random() < 0.4 * presence]
    if not readings:
        readings.append(_battery(rng, alarm=rng.random() < alarm_rate))
    _shuffle(rng, readings)
    style = Style(
        joiner=_pick(rng, (" ", " ", ": ", "=")),
        unit_gap=_pick(rng, (" ", " ", "")),
        separator=_pick(rng, ("; ", "; ", ", ")),
    )
    parts = [_render(rng, reading, style) for reading in readings]
    if rng.random() < 0.25:
        parts.insert(0, f"{_pick(rng, ('drone', 'robot', 'unit'))} {_between(rng, 1, 99)}")
    return Example(prompt=style.separator.join(parts), expected=alert(readings))


def alert(readings: Sequence[Reading]) -> str:
    """Say what is wrong, gravest first, or that nothing is."""
    broken = [(r.severity, r.sentence) for r in readings if r.severity is not None]
    return " ".join(sentence for _, sentence in sorted(broken)) or ALL_NORMAL


def _obstacle(rng: Random, *, alarm: bool) -> Reading:
    names = ("obstacle", "obstacle", "obst")
    if not alarm and rng.random() < 0.3:
        return Reading(names=names, value="none")
    metres = _between(rng, 1, 39) if alarm else _between(rng, 40, 250)
    side = _pick(rng, ("left", "right", "centre"))
    return Reading(
        names=names,
        value=str(metres),
        unit="m",
        suffix=f" {side}",
        severity=1 if alarm else None,
        sentence=f"Obstacle ahead, {metres} m {side}.",
    )


def _battery(rng: Random, *, alarm: bool) -> Reading:
    percent = _between(rng, 1, 19) if alarm else _between(rng, 20, 100)
    word, severity = ("critical", 2) if percent < 10 else ("low", 5)
    return Reading(
        names=("battery", "battery", "batt", "bat"),
        value=str(percent),
        unit="%",
        severity=severity if alarm else None,
        sentence=f"Battery {word}, {percent} %.",
    )


def _tilt(rng: Random, *, alarm: bool) -> Reading:
    degrees = _between(rng, 31, 90) if alarm else _between(rng, 0, 30)
    return Reading(
        names=("tilt",),
        value=str(degrees),
        unit="deg",
        severity=3 if alarm else None,
        sentence=f"Tilt high, {degrees} deg.",
    )


def _gps(rng: Random, *, alarm: bool) -> Reading:
    value = _pick(rng, ("lost", "none", "no fix")) if alarm else _pick(rng, ("ok", "ok", "good", "fix"))
    return Reading(names=("gps",), value=value, severity=4 if alarm else None, sentence="GPS lost.")


def _temp(rng: Random, *, alarm: bool) -> Reading:
    celsius = _between(rng, 71, 120) if alarm else _between(rng, 0, 70)
    return Reading(
        names=("temp", "temp", "temperature"),
        value=str(celsius),
        unit="C",
        severity=6 if alarm else None,
        sentence=f"Too hot, {celsius} C.",
    )


def _wind(rng: Random, *, alarm: bool) -> Reading:
    speed = _between(rng, 13, 30) if alarm else _between(rng, 0, 12)
    return Reading(
        names=("wind",),
        value=str(speed),
        unit="m/s",
        severity=7 if alarm else None,
        sentence=f"Wind strong, {speed} m/s.",
    )


def _link(rng: Random, *, alarm: bool) -> Reading:
    percent = _between(rng, 0, 29) if alarm else _between(rng, 30, 100)
    return Reading(
        names=("link", "link", "signal"),
        value=str(percent),
        unit="%",
        severity=8 if alarm else None,
        sentence=f"Link weak, {percent} %.",
    )


def _altitude(rng: Random) -> Reading:
    return Reading(names=("alt", "alt", "altitude"), value=str(_between(rng, 0, 120)), unit="m")


def _speed(rng: Random) -> Reading:
    return Reading(names=("speed",), value=str(_between(rng, 0, 25)), unit="m/s")


def _heading(rng: Random) -> Reading:
    return Reading(names=("heading",), value=str(_between(rng, 0, 359)), unit="deg")


def _render(rng: Random, reading: Reading, style: Style) -> str:
    unit = f"{style.unit_gap}{reading.unit}" if reading.unit else ""
    return f"{_pick(rng, reading.names)}{style.joiner}{reading.value}{unit}{reading.suffix}"


# Everything random goes through Random.random(): the only method whose sequence Python promises to keep.
def _pick(rng: Random, options: Sequence[_T]) -> _T:
    return options[int(rng.random() * len(options))]


def _between(rng: Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _shuffle(rng: Random, items: list[Reading]) -> None:
    for last in range(len(items) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        items[last], items[other] = items[other], items[last]


def main(argv: Sequence[str] | None = None) -> int:
    """Print examples as JSON lines with the keys "prompt" and "expected"."""
    parser = argparse.ArgumentParser(description="Print examples of the demo model's task as JSON lines.")
    parser.add_argument("split", choices=("heldout", "train"))
    parser.add_argument("--count", type=int, default=HELD_OUT_LINES, help="lines to print (default 1000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the training lines (default 1)")
    options = parser.parse_args(argv)
    if options.split == "heldout":
        examples: Iterator[Example] = iter(held_out_examples(options.count))
    else:
        source = training_examples(options.seed)
        examples = (next(source) for _ in range(options.count))
    for example in examples:
        sys.stdout.write(json.dumps({"prompt": example.prompt, "expected": example.expected}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

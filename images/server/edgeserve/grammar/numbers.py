"""Numbers within bounds, digit by digit, in JSON's spelling (RFC 8259, 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgeserve.grammar.nodes import Characters, Literal, Node, Repeat, choice, optional, sequence

MOST_DIGITS: Final = 18
LARGEST: Final = 10**MOST_DIGITS - 1
_FRACTION_DIGITS: Final = 15

_DIGIT: Final = Characters(((0x30, 0x39),))
_NOT_ZERO: Final = Characters(((0x31, 0x39),))
_FRACTION: Final = sequence(Literal("."), Repeat(_DIGIT, 1, _FRACTION_DIGITS))
_POSITIVE_FRACTION: Final = sequence(Literal("."), Repeat(_DIGIT, 0, _FRACTION_DIGITS - 1), _NOT_ZERO)
_ZERO_FRACTION: Final = sequence(Literal("."), Repeat(Literal("0"), 1, _FRACTION_DIGITS))
_EXPONENT: Final = sequence(
    Characters(((0x45, 0x45), (0x65, 0x65))),
    optional(Characters(((0x2B, 0x2B), (0x2D, 0x2D)))),
    Repeat(_DIGIT, 1, 2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Whole numbers between which a number lies; an open bound is not part of it, None is none."""

    low: int | None = None
    high: int | None = None
    is_low_open: bool = False
    is_high_open: bool = False


def integers(bounds: Bounds) -> Node | None:
    """Spell the integers within bounds.

    Returns:
        The node, or None if there are none of at most `MOST_DIGITS` digits.
    """
    low = -LARGEST if bounds.low is None else bounds.low + bounds.is_low_open
    high = LARGEST if bounds.high is None else bounds.high - bounds.is_high_open
    low, high = max(low, -LARGEST), min(high, LARGEST)
    nodes: list[Node] = []
    if low <= high and high >= 0:
        nodes.extend(_whole(max(low, 0), high))
    if low <= high and low < 0:
        nodes.append(sequence(Literal("-"), choice(_whole(max(1, -high), -low))))
    return choice(nodes) if nodes else None


def numbers(bounds: Bounds) -> Node | None:
    """Spell the decimal numbers within bounds, with an exponent only where there are none.

    Returns:
        The node, or None if there are none.
    """
    if bounds.low is None and bounds.high is None:
        whole = choice([Literal("0"), sequence(_NOT_ZERO, Repeat(_DIGIT, 0, MOST_DIGITS - 1))])
        return sequence(optional(Literal("-")), whole, optional(_FRACTION), optional(_EXPONENT))
    low = -LARGEST if bounds.low is None else max(bounds.low, -LARGEST)
    high = LARGEST if bounds.high is None else min(bounds.high, LARGEST)
    nodes: list[Node] = []
    if high >= 0:
        nodes.extend(
            _magnitudes(
                max(low, 0),
                high,
                is_low_open=bounds.is_low_open and low >= 0,
                is_high_open=bounds.is_high_open,
            )
        )
    if low < 0:
        # Zero has no sign, so the magnitude of a negative number is above it.
        is_open = bounds.is_high_open if high < 0 else True
        negative = _magnitudes(max(-high, 0), -low, is_low_open=is_open, is_high_open=bounds.is_low_open)
        nodes.extend(sequence(Literal("-"), node) for node in negative)
    return choice(nodes) if nodes else None


def _magnitudes(low: int, high: int, *, is_low_open: bool, is_high_open: bool) -> list[Node]:
    """Spell the numbers without sign from `low` to `high`."""
    if low > high:
        return []
    if low == high:
        return [] if is_low_open or is_high_open else [sequence(Literal(str(low)), optional(_ZERO_FRACTION))]
    nodes: list[Node] = []
    first = low
    if is_low_open:
        nodes.append(sequence(Literal(str(low)), _POSITIVE_FRACTION))
        first = low + 1
    if first < high:
        nodes.append(sequence(choice(_whole(first, high - 1)), optional(_FRACTION)))
    if not is_high_open:
        nodes.append(sequence(Literal(str(high)), optional(_ZERO_FRACTION)))
    return nodes


def _whole(low: int, high: int) -> list[Node]:
    """Spell the integers from `low` to `high`, neither negative, without leading zeros."""
    nodes: list[Node] = []
    size = len(str(low))
    while low <= high:
        last = min(high, 10**size - 1)
        nodes.append(_same_length(str(low), str(last)))
        low, size = 10**size, size + 1
    return _merged(nodes)


def _merged(nodes: list[Node]) -> list[Node]:
    """Write runs of all numbers of 2, 3, 4… digits as one repetition."""
    runs = [node for node in nodes if _run_digits(node)]
    if len(runs) < 2:
        return nodes
    low, high = _run_digits(runs[0]), _run_digits(runs[-1])
    run = sequence(_NOT_ZERO, Repeat(_DIGIT, low - 1, high - 1))
    return [*(node for node in nodes if not _run_digits(node)), run]


def _run_digits(node: Node) -> int:
    """Return how many digits the numbers have of which this node spells all; 0 if it does not."""
    for digits in range(1, MOST_DIGITS + 1):
        if node == _all_of(digits):
            return digits
    return 0


def _all_of(digits: int) -> Node:
    return _NOT_ZERO if digits == 1 else sequence(_NOT_ZERO, _free(digits - 1))


def _free(digits: int) -> Node:
    return _DIGIT if digits == 1 else Repeat(_DIGIT, digits, digits)


def _same_length(low: str, high: str) -> Node:
    """Spell the numbers between two of the same length."""
    if low == high:
        return Literal(low)
    size = len(low)
    if size == 1:
        return Characters(((ord(low), ord(high)),))
    if low[1:] == "0" * (size - 1) and high[1:] == "9" * (size - 1):
        return sequence(Characters(((ord(low[0]), ord(high[0])),)), _free(size - 1))
    if low[0] == high[0]:
        return sequence(Literal(low[0]), _same_length(low[1:], high[1:]))
    return choice(
        [
            sequence(Literal(low[0]), _same_length(low[1:], "9" * (size - 1))),
            *_between(int(low[0]) + 1, int(high[0]) - 1, size - 1),
            sequence(Literal(high[0]), _same_length("0" * (size - 1), high[1:])),
        ]
    )


def _between(first: int, last: int, free: int) -> list[Node]:
    if first > last:
        return []
    return [sequence(Characters(((0x30 + first, 0x30 + last),)), _free(free))]

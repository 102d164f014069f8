"""Sets of characters as ranges of code points, and how a JSON string spells them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from edgeserve.grammar.nodes import EMPTY, Characters, Literal, Node, choice, keyword, sequence

Ranges = tuple[tuple[int, int], ...]

_LAST: Final = 0x10FFFF
# Half of a surrogate pair is no character.
_SURROGATES: Final = (0xD800, 0xDFFF)
_SHORT_ESCAPES: Final = {
    0x08: "b",
    0x09: "t",
    0x0A: "n",
    0x0C: "f",
    0x0D: "r",
    0x22: '"',
    0x5C: "\\",
}


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Merge ranges into sorted ones that do not touch, surrogates left out."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return _without(tuple(merged), *_SURROGATES)


def complement(ranges: Ranges) -> Ranges:
    """Return all other characters."""
    left: Ranges = ((0, _LAST),)
    for low, high in ranges:
        left = _without(left, low, high)
    return _without(left, *_SURROGATES)


def _without(ranges: Ranges, low: int, high: int) -> Ranges:
    parts: list[tuple[int, int]] = []
    for start, end in ranges:
        if end < low or start > high:
            parts.append((start, end))
            continue
        if start < low:
            parts.append((start, low - 1))
        if end > high:
            parts.append((high + 1, end))
    return tuple(parts)


ANY: Final = complement(())


def in_json(ranges: Ranges) -> Node | None:
    """Spell one character of a set as it stands in a JSON string (RFC 8259, 7), in the shortest way only.

    Returns:
        The node, or None for the empty set.
    """
    plain = ranges
    for code in (*range(0x20), 0x22, 0x5C, 0x7F):
        plain = _without(plain, code, code)
    escaped = [code for code in (*range(0x20), 0x22, 0x5C, 0x7F) if _holds(ranges, code)]
    nodes: list[Node] = [Characters(plain)] if plain else []
    if escaped:
        nodes.append(sequence(Literal("\\"), _escapes(escaped)))
    return choice(nodes) if nodes else None


def _escapes(codes: Iterable[int]) -> Node:
    """Spell what stands behind the backslash; few ways are open at one place, for this is part of every string."""
    nodes: list[Node] = []
    letters = union((ord(_SHORT_ESCAPES[code]),) * 2 for code in codes if code in _SHORT_ESCAPES)
    if letters:
        nodes.append(Characters(letters))
    rare = {f"u{code:04x}": EMPTY for code in codes if code not in _SHORT_ESCAPES}
    if rare:
        nodes.append(keyword(rare))
    return choice(nodes)


def _holds(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)

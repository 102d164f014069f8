"""Regular expressions of JSON schemas (ECMA-262, without what looks around) as grammar nodes, exactly or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgeserve.grammar.bounds import GrammarError
from edgeserve.grammar.characters import ANY, Ranges, complement, in_json, union
from edgeserve.grammar.nodes import EMPTY, MOST_REPEATS, Choice, Node, Repeat, Sequence, choice, sequence

_LONGEST: Final = 2000
_DEEPEST: Final = 32
_MOST_PLACES: Final = 2000
_DIGITS: Final = union([(0x30, 0x39)])
_WORD: Final = union([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
# White space and line terminators of ECMA-262, 12.2 and 12.3.
_SPACE: Final = union(
    [(0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)]
    + [(code, code) for code in (0x202F, 0x205F, 0x3000, 0xFEFF)]
)
_DOT: Final = complement(union([(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]))
_CLASSES: Final = {
    "d": _DIGITS,
    "D": complement(_DIGITS),
    "w": _WORD,
    "W": complement(_WORD),
    "s": _SPACE,
    "S": complement(_SPACE),
}
_CONTROLS: Final = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}
_SYNTAX: Final = frozenset("^$\\.*+?()[]{}|/-")
_HEX: Final = frozenset("0123456789abcdefABCDEF")


def parse_pattern(pattern: str) -> Node:
    """Make the node for the inside of a JSON string that a pattern matches.

    A pattern that is not tied to the start or the end by ^ and $ lets anything stand there.

    Raises:
        GrammarError: It is no pattern, or one that cannot be expressed exactly.
    """
    if len(pattern) > _LONGEST:
        raise GrammarError(f"is longer than {_LONGEST} characters")
    node = _Parser(pattern).parse()
    if _expanded(node) > _MOST_PLACES:
        raise GrammarError(f"has more than {_MOST_PLACES} places once its repetitions are written out")
    return node


def _expanded(node: Node) -> int:
    """Count the places at which matching can stand: so many ways can be open at once, however ambiguous it is."""
    match node:
        case Sequence() | Choice():
            return sum(map(_expanded, node.items))
        case Repeat():
            return (node.low + 1 if node.high is None else node.high) * _expanded(node.item)
        case _:
            return 1


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def parse(self) -> Node:
        node = self._alternatives(self._anchored)
        if self._at < len(self._text):
            raise GrammarError(f"has an unexpected {self._text[self._at]!r} at {self._at}")
        return node

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise GrammarError("ends too early")
        self._at += 1
        return character

    def _accept(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _alternatives(self, parse: Callable[[], Node]) -> Node:
        nodes = [parse()]
        while self._accept("|"):
            nodes.append(parse())
        return choice(nodes)

    def _anchored(self) -> Node:
        """Parse one alternative of the whole pattern, the only place for anchors."""
        start = EMPTY if self._accept("^") else _anything()
        middle = self._series()
        end = EMPTY if self._accept("$") else _anything()
        return sequence(start, middle, end)

    def _series(self) -> Node:
        nodes: list[Node] = []
        while self._peek() not in {"", "|", ")", "$"}:
            nodes.append(self._repeated(self._atom()))
        return sequence(*nodes)

    def _atom(self) -> Node:
        character = self._take()
        match character:
            case "(":
                return self._group()
            case "[":
                return _one_of(self._set())
            case ".":
                return _one_of(_DOT)
            case "\\":
                return _one_of(self._escape())
            case "^":
                raise GrammarError(f"has ^ within it, at {self._at - 1}")
            case "*" | "+" | "?" | "{" | "}" | "]":
                raise GrammarError(f"has an unexpected {character!r} at {self._at - 1}")
            case _:
                return _one_of(union([(ord(character), ord(character))]))

    def _group(self) -> Node:
        if self._accept("?") and not self._accept(":"):
            raise GrammarError(f"has a group of a kind that is not supported, at {self._at - 1}")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise GrammarError(f"is nested deeper than {_DEEPEST} groups")
        node = self._alternatives(self._series)
        self._depth -= 1
        if not self._accept(")"):
            raise GrammarError(f"lacks a ) at {self._at}")
        return node

    def _repeated(self, node: Node) -> Node:
        bounds = self._quantifier()
        if bounds is None:
            return node
        # A question mark more only says which of several matches to take.
        self._accept("?")
        if self._peek() in {"*", "+", "?", "{"}:
            raise GrammarError(f"has two repetitions in a row at {self._at}")
        low, high = bounds
        if max(low, high or 0) > MOST_REPEATS or (high is not None and high < low):
            raise GrammarError(f"has repetitions out of 0 to {MOST_REPEATS}")
        return Repeat(node, low, high) if high != 0 else EMPTY

    def _quantifier(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._accept(sign):
                return bounds
        if not self._accept("{"):
            return None
        low = self._number()
        if self._accept("}"):
            return low, low
        if not self._accept(","):
            raise GrammarError(f"has a malformed repetition at {self._at}")
        if self._accept("}"):
            return low, None
        high = self._number()
        if not self._accept("}"):
            raise GrammarError(f"has a malformed repetition at {self._at}")
        return low, high

    def _number(self) -> int:
        start = self._at
        while self._peek().isascii() and self._peek().isdigit() and self._at - start < 5:
            self._at += 1
        if start == self._at:
            raise GrammarError(f"has a malformed repetition at {self._at}")
        return int(self._text[start : self._at])

    def _set(self) -> Ranges:
        is_negated = self._accept("^")
        ranges: list[tuple[int, int]] = []
        while not self._accept("]"):
            first = self._set_item()
            if self._text.startswith("-", self._at) and self._text[self._at + 1 : self._at + 2] not in {
                "]",
                "",
            }:
                self._at += 1
                last = self._set_item()
                if not (_is_single(first) and _is_single(last)) or first[0][0] > last[0][0]:
                    raise GrammarError(f"has a malformed range at {self._at}")
                ranges.append((first[0][0], last[0][0]))
            else:
                ranges.extend(first)
        found = union(ranges)
        return complement(found) if is_negated else found

    def _set_item(self) -> Ranges:
        character = self._take()
        if character == "\\":
            return ((0x08, 0x08),) if self._accept("b") else self._escape()
        return union([(ord(character), ord(character))])

    def _escape(self) -> Ranges:
        letter = self._take()
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter in _SYNTAX:
            code = ord(letter)
        elif letter in _CONTROLS and not (letter == "0" and self._peek().isdigit()):
            code = _CONTROLS[letter]
        elif letter in {"x", "u"}:
            code = self._hex(2 if letter == "x" else 4)
        else:
            raise GrammarError(f"has an escape that is not supported, \\{letter}, at {self._at - 2}")
        return union([(code, code)])

    def _hex(self, size: int) -> int:
        digits = self._text[self._at : self._at + size]
        if len(digits) < size or not _HEX.issuperset(digits):
            raise GrammarError(f"has a malformed escape at {self._at}")
        self._at += size
        return int(digits, 16)


def _is_single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _one_of(ranges: Ranges) -> Node:
    node = in_json(ranges)
    if node is None:
        raise GrammarError("has a set that holds no character")
    return node


def _anything() -> Node:
    return Repeat(_one_of(ANY), 0, None)

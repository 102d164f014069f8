"""Reads GBNF by itself, to try grammars without a model: texts that follow one, and whether a text does.

Only what edgeserve writes: literals, ranges, rules, groups, choices and repetitions.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r'\s*(?:(?P<literal>"(?:[^"\\]|\\.)*")|(?P<set>\[(?:[^\]\\]|\\.)*\])|(?P<name>[a-z][a-z0-9-]*)'
    r"|(?P<times>\{\d+,\d*\}|[?*+])|(?P<sign>[()|]))"
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-F]{2})|U([0-9A-F]{8}))|(.)", re.DOTALL)


@dataclass(frozen=True)
class _Node:
    kind: str
    items: tuple[_Node, ...] = ()
    text: str = ""
    ranges: tuple[tuple[int, int], ...] = ()
    low: int = 0
    high: int | None = None


class Gbnf:
    """One grammar, its start symbol `root`."""

    def __init__(self, text: str) -> None:
        self.rules: dict[str, _Node] = {}
        for line in text.splitlines():
            name, _, body = line.partition(" ::= ")
            assert name not in self.rules, name
            self.rules[name] = _Parser(body).parse()
        self._seen: dict[tuple[str, int], frozenset[int]] = {}

    def generate(self, seed: int, most_repeats: int = 4) -> str:
        """Make a text that follows the grammar, if it ends within a bounded depth."""
        source = random.Random(seed)
        return self._generated(self.rules["root"], source, most_repeats, 0)

    def _generated(self, node: _Node, source: random.Random, most: int, depth: int) -> str:
        match node.kind:
            case "literal":
                return node.text
            case "set":
                low, high = source.choice(node.ranges)
                return chr(source.choice((low, high, source.randint(low, high))))
            case "name":
                return self._generated(self.rules[node.text], source, most, depth + 1)
            case "sequence":
                return "".join(self._generated(item, source, most, depth) for item in node.items)
            case "choice":
                # Deep inside, the last way: in values, what holds no others.
                items = node.items if depth < 24 else node.items[-1:]
                return self._generated(source.choice(items), source, most, depth)
            case _:
                high = node.low + most if node.high is None else node.high
                times = source.choice((node.low, high, source.randint(node.low, high)))
                times = node.low if depth >= 24 else min(times, max(node.low, 300))
                return "".join(self._generated(node.items[0], source, most, depth) for _ in range(times))

    def allows(self, text: str) -> bool:
        """Whether the whole text follows the grammar."""
        self._seen = {}
        return len(text) in self._ends(self.rules["root"], text, 0)

    def _ends(self, node: _Node, text: str, start: int) -> frozenset[int]:
        match node.kind:
            case "literal":
                return frozenset({start + len(node.text)} if text.startswith(node.text, start) else ())
            case "set":
                code = ord(text[start]) if start < len(text) else -1
                return frozenset({start + 1} if any(low <= code <= high for low, high in node.ranges) else ())
            case "name":
                key = node.text, start
                if key not in self._seen:
                    self._seen[key] = self._ends(self.rules[node.text], text, start)
                return self._seen[key]
            case "sequence":
                ends = frozenset({start})
                for item in node.items:
                    ends = frozenset(end for at in ends for end in self._ends(item, text, at))
                return ends
            case "choice":
                return frozenset(end for item in node.items for end in self._ends(item, text, start))
            case _:
                return self._repeated_ends(node, text, start)

    def _repeated_ends(self, node: _Node, text: str, start: int) -> frozenset[int]:
        ends, found, times = frozenset({start}), set[int](), 0
        while ends:
            if times >= node.low:
                found |= ends
            if times == node.high or times > node.low + len(text):
                break
            ends = frozenset(end for at in ends for end in self._ends(node.items[0], text, at))
            times += 1
        return frozenset(found)


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            assert match is not None, text[at : at + 40]
            assert match.lastgroup is not None
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self._at = 0

    def parse(self) -> _Node:
        node = self._choice()
        assert self._at == len(self._tokens)
        return node

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("", "")

    def _choice(self) -> _Node:
        items = [self._sequence()]
        while self._peek() == ("sign", "|"):
            self._at += 1
            items.append(self._sequence())
        return items[0] if len(items) == 1 else _Node("choice", tuple(items))

    def _sequence(self) -> _Node:
        items: list[_Node] = []
        while self._peek()[1] not in {"", "|", ")"}:
            items.append(self._item())
        return items[0] if len(items) == 1 else _Node("sequence", tuple(items))

    def _item(self) -> _Node:
        kind, text = self._peek()
        self._at += 1
        if kind == "literal":
            node = _Node("literal", text=_unescape(text[1:-1]))
        elif kind == "set":
            letters = _letters(text[1:-1])
            node = _Node("set", ranges=tuple(zip(letters[::3], letters[2::3], strict=True)))
            assert all(dash == ord("-") for dash in letters[1::3])
        elif kind == "name":
            node = _Node("name", text=text)
        else:
            assert text == "("
            node = self._choice()
            assert self._peek() == ("sign", ")")
            self._at += 1
        if self._peek()[0] == "times":
            low, high = _bounds(self._peek()[1])
            self._at += 1
            node = _Node("repeat", (node,), low=low, high=high)
        return node


def _bounds(text: str) -> tuple[int, int | None]:
    short: dict[str, tuple[int, int | None]] = {"?": (0, 1), "*": (0, None), "+": (1, None)}
    if text in short:
        return short[text]
    low, _, high = text[1:-1].partition(",")
    return int(low), int(high) if high else None


def _letters(text: str) -> list[int]:
    return [
        int(match[1] or match[2], 16) if match[3] is None else ord(match[3])
        for match in _ESCAPE.finditer(text)
    ]


def _unescape(text: str) -> str:
    return "".join(map(chr, _letters(text)))

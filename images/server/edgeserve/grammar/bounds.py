"""What a grammar costs: bounds that keep llama.cpp's parser and its matching of each token quick.

llama.cpp follows all ways through a grammar at the same time and compares the whole vocabulary with each of them, so
what counts is how many ways are open at one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgeserve.grammar.nodes import (
    MOST_REPEATS,
    Characters,
    Choice,
    Literal,
    Node,
    Repeat,
    Rule,
    Sequence,
)

MOST_RULES: Final = 2000
MOST_OPEN: Final = 64
_MOST_COPIES: Final = 20_000
_MOST_PASSES: Final = 64
_ENDLESS: Final = 1 << 62


class GrammarError(Exception):
    """The grammar cannot be used; the message says why."""


def check(rules: Mapping[str, Node]) -> None:
    """Check a whole grammar.

    Raises:
        GrammarError: It is too large, open in too many ways at one place, or has a rule that never ends.
    """
    if len(rules) > MOST_RULES:
        raise GrammarError(f"needs more than {MOST_RULES} grammar rules")
    _Checker(rules).run()


class _Checker:
    def __init__(self, rules: Mapping[str, Node]) -> None:
        self._rules = rules
        self._shortest = dict.fromkeys(rules, _ENDLESS)
        self._open: dict[str, int] = {}
        self._copies = 0

    def run(self) -> None:
        self._find_shortest()
        if any(size >= _ENDLESS for size in self._shortest.values()):
            raise GrammarError("describes a value that can never end")
        for node in self._rules.values():
            self._visit(node)

    def _find_shortest(self) -> None:
        """Find the length of the shortest text of each rule, of rules that use each other by repetition."""
        for _ in range(_MOST_PASSES):
            is_changed = False
            for name, node in self._rules.items():
                size = self._size(node)
                if size < self._shortest[name]:
                    self._shortest[name], is_changed = size, True
            if not is_changed:
                return
        raise GrammarError("refers to itself in too many ways")

    def _size(self, node: Node) -> int:
        match node:
            case Literal():
                return len(node.text)
            case Characters():
                return 1
            case Rule():
                return self._shortest[node.name]
            case Sequence():
                return min(_ENDLESS, sum(map(self._size, node.items)))
            case Choice():
                return min(map(self._size, node.items))
            case Repeat():
                return min(_ENDLESS, node.low * self._size(node.item)) if node.low else 0

    def _visit(self, node: Node) -> None:
        match node:
            case Sequence():
                for start in range(len(node.items)):
                    self._check_open(Sequence(node.items[start:]))
                for item in node.items:
                    self._visit(item)
            case Choice():
                self._check_open(node)
                for item in node.items:
                    self._visit(item)
            case Repeat():
                self._check_repeat(node)
                self._visit(node.item)
            case _:
                pass

    def _check_open(self, node: Node) -> None:
        if self._ways(node) > MOST_OPEN:
            raise GrammarError(f"leaves more than {MOST_OPEN} ways open at one place")

    def _check_repeat(self, node: Repeat) -> None:
        if max(node.low, node.high or 0) > MOST_REPEATS:
            raise GrammarError(f"repeats something more than {MOST_REPEATS} times")
        if node.high != 1 and not self._size(node.item):
            raise GrammarError("repeats what may be empty")
        self._copies += node.high or node.low
        if self._copies > _MOST_COPIES:
            raise GrammarError(f"repeats things more than {_MOST_COPIES} times in all")

    def _ways(self, node: Node) -> int:
        """Count the characters and texts with which this may start."""
        match node:
            case Literal() | Characters():
                return 1
            case Rule():
                return self._ways_of_rule(node.name)
            case Choice():
                return sum(map(self._ways, node.items))
            case Repeat():
                return self._ways(node.item)
            case Sequence():
                ways = 0
                for item in node.items:
                    ways += self._ways(item)
                    if self._size(item):
                        break
                return ways

    def _ways_of_rule(self, name: str) -> int:
        if name not in self._open:
            # llama.cpp refuses a rule that starts with itself.
            self._open[name] = -1
            self._open[name] = self._ways(self._rules[name])
        if self._open[name] < 0:
            raise GrammarError("refers to itself before anything else")
        return self._open[name]

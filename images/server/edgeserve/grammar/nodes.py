"""The parts of a grammar, and how they are written as GBNF (llama.cpp, grammars/README.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

# llama.cpp takes a larger upper bound for none (llama-grammar.cpp, MAX_REPETITION_THRESHOLD).
MOST_REPEATS: Final = 2000
_THOUSAND: Final = 1000


@dataclass(frozen=True, slots=True)
class Literal:
    """A text, letter by letter."""

    text: str


@dataclass(frozen=True, slots=True)
class Characters:
    """One character out of inclusive ranges of code points."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Sequence:
    """One part after the other."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the parts."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part from `low` to `high` times, without end where `high` is None."""

    item: Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Rule:
    """What stands in the grammar under this name."""

    name: str


Node = Literal | Characters | Sequence | Choice | Repeat | Rule
EMPTY: Final = Sequence(())


def sequence(*items: Node) -> Node:
    """Put parts after each other; empty ones vanish, texts grow together."""
    flat: list[Node] = []
    for item in items:
        for part in item.items if isinstance(item, Sequence) else (item,):
            last = flat[-1] if flat else None
            if isinstance(part, Literal) and isinstance(last, Literal):
                flat[-1] = Literal(last.text + part.text)
            elif part != Literal(""):
                flat.append(part)
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))


def choice(items: Iterable[Node]) -> Node:
    """Let one of the parts stand, each only once."""
    flat: dict[Node, None] = {}
    for item in items:
        for part in item.items if isinstance(item, Choice) else (item,):
            flat[part] = None
    return next(iter(flat)) if len(flat) == 1 else Choice(tuple(flat))


def optional(item: Node) -> Node:
    """Let the part stand or not."""
    return Repeat(item, 0, 1)


def repeat(item: Node, low: int, high: int | None) -> Node:
    """Repeat a part any number of times, which llama.cpp takes only up to `MOST_REPEATS`: by thousands, then singly."""
    if high == 0:
        return EMPTY
    if max(low, high or 0) <= MOST_REPEATS:
        return Repeat(item, low, high)
    thousand = Repeat(item, _THOUSAND, _THOUSAND)
    thousands, singles = divmod(low, _THOUSAND)
    start = sequence(repeat(thousand, thousands, thousands), repeat(item, singles, singles))
    if high is None:
        return sequence(start, repeat(item, 0, None))
    thousands, singles = divmod(high - low, _THOUSAND)
    fewer = (
        sequence(repeat(thousand, 0, thousands - 1), repeat(item, 0, _THOUSAND - 1)) if thousands else EMPTY
    )
    most = sequence(repeat(thousand, thousands, thousands), repeat(item, 0, singles))
    return sequence(start, choice([fewer, most]))


def keyword(branches: Mapping[str, Node]) -> Node:
    """Let one of several texts stand, each followed by a part of its own.

    Texts that start alike share their start: every alternative open at one place costs time for each token.
    """
    starts: dict[str, dict[str, Node]] = {}
    items: list[Node] = []
    for text, follow in branches.items():
        if text:
            starts.setdefault(text[0], {})[text] = follow
        else:
            items.append(follow)
    for group in starts.values():
        shared = _common_start(tuple(group))
        rest = {text[len(shared) :]: follow for text, follow in group.items()}
        items.append(sequence(Literal(shared), keyword(rest) if len(rest) > 1 else next(iter(rest.values()))))
    return choice(items)


def _common_start(texts: tuple[str, ...]) -> str:
    first, last = min(texts), max(texts)
    size = next(
        (at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return first[:size]


def render(rules: Mapping[str, Node]) -> str:
    """Write a grammar as GBNF, one rule a line."""
    writer = _Writer()
    lines = [f"{name} ::= {writer.write(node, is_inner=False)}\n" for name, node in rules.items()]
    return "".join(lines + writer.extra)


class _Writer:
    """Writes nodes; what is repeated and not simple gets a rule of its own, so that llama.cpp copies a name."""

    def __init__(self) -> None:
        self.extra: list[str] = []
        self._names: dict[Node, str] = {}

    def write(self, node: Node, *, is_inner: bool) -> str:
        match node:
            case Literal():
                return '"' + "".join(map(_literal_character, node.text)) + '"'
            case Characters():
                return "[" + "".join(f"{_escape(low)}-{_escape(high)}" for low, high in node.ranges) + "]"
            case Rule():
                return node.name
            case Repeat():
                return self._repeated(node.item) + _times(node)
            case Sequence():
                return " ".join(self.write(item, is_inner=True) for item in node.items) or '""'
            case Choice():
                text = " | ".join(self.write(item, is_inner=False) for item in node.items)
                return f"({text})" if is_inner else text

    def _repeated(self, item: Node) -> str:
        if not isinstance(item, (Sequence, Choice, Repeat)):
            return self.write(item, is_inner=True)
        if item not in self._names:
            text = self.write(item, is_inner=False)
            self._names[item] = name = f"part-{len(self._names)}"
            self.extra.append(f"{name} ::= {text}\n")
        return self._names[item]


def _times(node: Repeat) -> str:
    high = "" if node.high is None else str(node.high)
    return {"0,1": "?", "0,": "*", "1,": "+"}.get(f"{node.low},{high}", f"{{{node.low},{high}}}")


def _literal_character(character: str) -> str:
    return character if character.isascii() and character.isalnum() else _escape(ord(character))


def _escape(code: int) -> str:
    return f"\\x{code:02X}" if code < 0x80 else f"\\U{code:08X}"

"""JSON values as grammar nodes: strings, objects, arrays, any value at all.

Between tokens stands at most one space, or one line break with an indentation, so that white space always ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeserve.grammar.characters import ANY, in_json
from edgeserve.grammar.nodes import (
    EMPTY,
    Characters,
    Literal,
    Node,
    Repeat,
    Rule,
    choice,
    keyword,
    optional,
    sequence,
)
from edgeserve.grammar.numbers import Bounds, numbers

_MOST_INDENT: Final = 24
SPACE: Final = Rule("space")
GAP: Final = Rule("gap")
CHARACTER: Final = Rule("character")
STRING: Final = Rule("string")
NUMBER: Final = Rule("number")
VALUE: Final = Rule("value")
OBJECT: Final = Rule("object")
ARRAY: Final = Rule("array")


def _base_rules() -> dict[str, Node]:
    character, number = in_json(ANY), numbers(Bounds())
    assert character is not None
    assert number is not None
    indent = Repeat(Characters(((0x09, 0x09), (0x20, 0x20))), 0, _MOST_INDENT)
    member = sequence(STRING, Literal(":"), SPACE, VALUE)
    return {
        "space": optional(Literal(" ")),
        "gap": optional(choice([Literal(" "), sequence(Literal("\n"), indent)])),
        "character": character,
        "string": sequence(Literal('"'), Repeat(CHARACTER, 0, None), Literal('"')),
        "number": number,
        "object": in_brackets("{}", listed(member, 0, None)),
        "array": in_brackets("[]", listed(VALUE, 0, None)),
        "value": choice([OBJECT, ARRAY, STRING, NUMBER, *map(Literal, ("true", "false", "null"))]),
    }


def in_brackets(pair: str, inner: Node) -> Node:
    """Put what is between the brackets of an array or object between them."""
    return sequence(Literal(pair[0]), GAP, inner, Literal(pair[1]))


def listed(item: Node, low: int, high: int | None) -> Node:
    """List items with commas between them, from `low` to `high` of them, and the gap after the last."""
    more = sequence(Literal(","), GAP, item)
    if high == 0:
        return EMPTY
    rest = Repeat(more, max(0, low - 1), None if high is None else high - 1)
    some = sequence(item, rest, GAP) if high != 1 else sequence(item, GAP)
    return optional(some) if low == 0 else some


BASE_RULES: Final[Mapping[str, Node]] = _base_rules()


def constants(values: Iterable[object]) -> Node:
    """Let one of several values stand, each in its shortest spelling."""
    texts = [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values]
    return keyword(dict.fromkeys(texts, EMPTY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A property of an object."""

    name: str
    value: Node
    is_required: bool


def members(given: Sequence[Member], rules: dict[str, Node], prefix: str) -> Node:
    """Spell an object's properties in their order, those that are not required or not.

    Args:
        given: At least one property.
        rules: Takes a rule for what may follow after each of them.
        prefix: Start of the names of those rules.
    """
    after: list[Node] = [GAP] * (len(given) + 1)
    for at in range(len(given) - 1, 0, -1):
        following = sequence(Literal(","), GAP, _next(given, at, after))
        name = f"{prefix}-{at}"
        is_end_possible = not any(member.is_required for member in given[at:])
        rules[name] = choice([GAP, following]) if is_end_possible else following
        after[at] = Rule(name)
    first = _next(given, 0, after)
    return first if any(member.is_required for member in given) else optional(first)


def _next(given: Sequence[Member], at: int, after: Sequence[Node]) -> Node:
    """Let the next property be any up to the first that is required."""
    branches: dict[str, Node] = {}
    for number in range(at, len(given)):
        member = given[number]
        key = json.dumps(member.name, ensure_ascii=False)
        branches[key] = sequence(Literal(":"), SPACE, member.value, after[number + 1])
        if member.is_required:
            break
    return keyword(branches)


def successions(given: Sequence[Member]) -> int:
    """Count the pairs of properties of which the second may follow the first: what `members` spells out."""
    count = following = 0
    for member in reversed(given):
        following = 1 if member.is_required else following + 1
        count += following
    return count

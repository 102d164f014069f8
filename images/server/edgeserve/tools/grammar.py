"""The grammar of answers that may or must call functions: what the model's template spells around what schemas allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from edgeserve.calls import Function, Tools
from edgeserve.grammar.characters import ANY, complement
from edgeserve.grammar.json_schema import SchemaCompiler
from edgeserve.grammar.json_text import OBJECT
from edgeserve.grammar.keywords import SchemaError
from edgeserve.grammar.nodes import (
    Characters,
    Literal,
    Node,
    Repeat,
    Rule,
    choice,
    keyword,
    optional,
    repeat,
    sequence,
)
from edgeserve.tools.form import ID_CHARACTERS, CallForm

MOST_CALLS: Final = 16  # in one answer: a small model may go on and on
_ID: Final = Repeat(Characters(((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A))), ID_CHARACTERS, ID_CHARACTERS)
_FREE: Final = Repeat(Characters(ANY), 0, None)


def call_grammar(tools: Tools, form: CallForm) -> str:
    """Make the grammar of an answer.

    Args:
        tools: What may be called, and whether it must.
        form: How the model spells calls.

    Returns:
        GBNF with the start symbol `root`. An answer that need not call is a text without `form.trigger`, calls, or both in
        this order.

    Raises:
        SchemaError: A schema cannot be followed exactly, or all together are too large.
    """
    compiler = SchemaCompiler()
    branches = {
        function.name: sequence(Literal(form.middle), _arguments(compiler, function))
        for function in tools.callable
    }
    call = compiler.define("call", keyword(branches))
    more = MOST_CALLS - 1 if tools.is_parallel and form.between is not None else 0
    following = compiler.define("next-call", sequence(_with_id(form.between or ()), call))
    calls = sequence(call, repeat(following, 0, more), _with_id(form.closing))
    if tools.must_call:
        root = sequence(Literal(form.opening), calls)
    else:
        after = compiler.define("calls", sequence(Literal(form.opening.removeprefix(form.trigger)), calls))
        make = _unless_first if form.is_first_only else _anywhere
        root = make(form.trigger, after, compiler.define)
    return compiler.finish(root, "tools")


def _arguments(compiler: SchemaCompiler, function: Function) -> Node:
    try:
        return compiler.compile(function.parameters, function.field)
    except SchemaError:
        if function.is_strict:
            raise
        # Without `strict` a schema is a wish (OpenAI, "Function calling", strict mode); an object it is all the same.
        return OBJECT


def _with_id(parts: tuple[str, ...]) -> Node:
    nodes: list[Node] = []
    for part in parts:
        nodes += [_ID, Literal(part)] if nodes else [Literal(part)]
    return sequence(*nodes)


def _unless_first(trigger: str, after: Node, define: Callable[[str, Node], Rule]) -> Node:
    """Let any text stand, but what begins with the trigger goes on with `after`."""
    node: Node = after
    for place in range(len(trigger) - 1, -1, -1):
        code = ord(trigger[place])
        other = sequence(Characters(complement(((code, code),))), _FREE)
        here = choice([sequence(Literal(trigger[place]), node), other])
        node = define(f"begun-{place}", optional(here))
    return node


def _anywhere(trigger: str, after: Node, define: Callable[[str, Node], Rule]) -> Node:
    """Let any text stand that does not hold the trigger, and `after` behind the first trigger.

    It is the automaton of Knuth, Morris and Pratt: a rule for each number of characters of the trigger that the text
    ends with, so that only one way is open at any place.
    """
    for seen in range(len(trigger)):
        targets = _targets(trigger, seen)
        ways: list[Node] = []
        for character, target in targets.items():
            code = ord(character)
            rest = after if target == len(trigger) else Rule(f"seen-{target}")
            ways.append(sequence(Characters(((code, code),)), rest))
        others = complement(tuple(sorted((ord(character), ord(character)) for character in targets)))
        ways.append(sequence(Characters(others), Rule("seen-0")))
        define(f"seen-{seen}", optional(choice(ways)))
    return Rule("seen-0")


def _targets(trigger: str, seen: int) -> Mapping[str, int]:
    """Say for each character that matters how much of the trigger the text ends with after it."""
    text = trigger[:seen]
    found: dict[str, int] = {}
    for character in dict.fromkeys(trigger):
        after = text + character
        size = next((size for size in range(len(after), 0, -1) if after.endswith(trigger[:size])), 0)
        if size:
            found[character] = size
    return found

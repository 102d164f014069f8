"""From a JSON schema (2020-12) to a grammar: every answer is valid, and what cannot be said exactly is refused.

What a grammar leaves out of what a schema allows: properties come in the schema's order, and no others unless the
schema names none; numbers have at most 18 digits; strings are spelled in the shortest way; white space is bounded.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

from edgeserve.grammar.bounds import GrammarError, check
from edgeserve.grammar.disjoint import are_disjoint
from edgeserve.grammar.formats import FORMATS
from edgeserve.grammar.json_text import (
    ARRAY,
    BASE_RULES,
    CHARACTER,
    OBJECT,
    SPACE,
    STRING,
    VALUE,
    Member,
    constants,
    in_brackets,
    listed,
    members,
    successions,
)
from edgeserve.grammar.keywords import SchemaError, Subschema, bounds_of, is_of_type, types_of
from edgeserve.grammar.nodes import EMPTY, Literal, Node, Rule, choice, render, repeat, sequence
from edgeserve.grammar.numbers import integers, numbers
from edgeserve.grammar.regex import parse_pattern

_DEEPEST: Final = 64
_MOST_SCHEMAS: Final = 4000
_MOST_BRANCHES: Final = 32
_MOST_VALUES: Final = 1000
_MOST_SUCCESSIONS: Final = 8000  # of one property after another; 126 that may be left out have so many
_LONGEST_GRAMMAR: Final = 1 << 18
_NUMBER_FORMATS: Final = frozenset({"int64", "float", "double"})


class SchemaCompiler:
    """Makes the nodes of one or several schemas for one grammar; `compile` each, then `finish`."""

    def __init__(self) -> None:
        self._rules: dict[str, Node] = dict(BASE_RULES)
        self._root: object = None
        self._root_path = ""
        self._references: dict[tuple[int, str], Rule] = {}
        self._schemas = self._depth = self._successions = 0

    def compile(self, schema: object, path: str) -> Node:
        """Make the node of a whole schema.

        Args:
            schema: The parsed schema.
            path: Where it stands in the request, for messages.

        Raises:
            SchemaError: It is no schema, cannot be expressed exactly, or is too large.
        """
        self._root, self._root_path, self._depth = schema, path, 0
        try:
            return self._value(schema, path)
        except RecursionError:
            raise SchemaError(path, "is nested too deeply") from None

    def define(self, name: str, node: Node) -> Rule:
        """Give a node of the caller's a rule, whose name begins like none of `json_text.BASE_RULES` or of schemas."""
        self._rules[name] = node
        return Rule(name)

    def finish(self, root: Node, path: str) -> str:
        """Write the grammar.

        Args:
            root: What the whole answer is.
            path: What to name when it is too large.

        Returns:
            GBNF with the start symbol `root`.

        Raises:
            SchemaError: It is too large.
        """
        rules = {"root": root, **self._rules}
        try:
            check(rules)
            text = render(rules)
        except GrammarError as error:
            raise SchemaError(path, str(error)) from error
        except RecursionError:
            raise SchemaError(path, "is nested too deeply") from None
        if len(text) > _LONGEST_GRAMMAR:
            raise SchemaError(path, f"needs a grammar longer than {_LONGEST_GRAMMAR} characters")
        return text

    def _named(self, node: Node) -> Rule:
        name = f"rule-{len(self._rules)}"
        self._rules[name] = node
        return Rule(name)

    def _value(self, schema: object, path: str) -> Node:
        self._schemas += 1
        if self._schemas > _MOST_SCHEMAS:
            raise SchemaError(path, f"is one of more than {_MOST_SCHEMAS} schemas")
        if self._depth >= _DEEPEST:
            raise SchemaError(path, f"is nested deeper than {_DEEPEST} schemas")
        if schema is True:
            return VALUE
        if schema is False:
            raise SchemaError(path, "allows nothing")
        self._depth += 1
        node = self._object_schema(Subschema(schema, path))
        self._depth -= 1
        return node

    def _object_schema(self, schema: Subschema) -> Node:
        if "$ref" in schema.keys:
            schema.only("$ref")
            return self._reference(schema)
        for key in ("const", "enum"):
            if key in schema.keys:
                schema.only(key, "type")
                return self._constants(schema, key)
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema.keys:
                schema.only(key)
                return self._branches(schema, key)
        return choice([self._of_type(schema, kind) for kind in types_of(schema)]) if schema.keys else VALUE

    def _reference(self, schema: Subschema) -> Node:
        pointer = schema.get("$ref", str)
        key = (id(self._root), pointer)
        if key not in self._references:
            target = self._resolve(schema, pointer)
            rule = self._references[key] = Rule(f"reference-{len(self._references)}")
            self._rules[rule.name] = self._value(target, self._root_path + pointer[1:].replace("/", "."))
        return self._references[key]

    def _resolve(self, schema: Subschema, pointer: str) -> object:
        """Follow a JSON pointer (RFC 6901) within the same document."""
        if pointer != "#" and not pointer.startswith("#/"):
            raise schema.fault("$ref", "must start with '#': nothing is fetched from elsewhere")
        target: Any = self._root
        for part in pointer.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isascii() and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            elif isinstance(target, dict) and name in target:
                target = target[name]
            else:
                raise schema.fault("$ref", "refers to what is not there")
        return target

    def _follow(self, schema: object) -> object:
        """Follow references as far as they go, for looking ahead."""
        for _ in range(_DEEPEST):
            if not (isinstance(schema, dict) and isinstance(schema.get("$ref"), str)):
                break
            schema = self._resolve(Subschema({}, self._root_path), schema["$ref"])
        return schema

    @staticmethod
    def _constants(schema: Subschema, key: str) -> Node:
        values = [schema.get("const")] if key == "const" else schema.get("enum", list)
        if not 1 <= len(values) <= _MOST_VALUES:
            raise schema.fault(key, f"must hold 1 to {_MOST_VALUES} values")
        fitting = [value for value in values if is_of_type(value, types_of(schema))]
        if not fitting:
            raise schema.fault(key, "has no value of the schema's type")
        return constants(fitting)

    def _branches(self, schema: Subschema, key: str) -> Node:
        branches = schema.get(key, list)
        if not 1 <= len(branches) <= _MOST_BRANCHES:
            raise schema.fault(key, f"must hold 1 to {_MOST_BRANCHES} schemas")
        if key == "allOf" and len(branches) > 1:
            raise schema.fault(key, "cannot be expressed exactly with more than one schema")
        path = schema.at(key)
        nodes = [self._value(branch, f"{path}[{number}]") for number, branch in enumerate(branches)]
        if key == "oneOf":
            for number, branch in enumerate(branches):
                if not all(are_disjoint(branch, other, self._follow) for other in branches[:number]):
                    raise SchemaError(f"{path}[{number}]", "may allow what another schema of 'oneOf' allows")
        return self._named(choice(nodes))

    def _of_type(self, schema: Subschema, kind: str) -> Node:
        match kind:
            case "object":
                return self._named(self._object(schema))
            case "array":
                return self._named(self._array(schema))
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return self._number(schema, kind)
            case "boolean":
                return choice([Literal("true"), Literal("false")])
            case _:
                return Literal("null")

    def _object(self, schema: Subschema) -> Node:
        properties: dict[str, Any] = schema.get("properties", dict) or {}
        required = schema.strings("required")
        other = schema.get("additionalProperties")
        self._check_property_count(schema, set(properties) | set(required), set(required))
        path = schema.at("properties")
        given = [
            Member(
                name=name,
                value=self._value(value, f"{path}.{Subschema({}, '').at(name)[1:]}"),
                is_required=name in required,
            )
            for name, value in properties.items()
        ]
        for name in dict.fromkeys(required):
            if name not in properties:
                if other is False:
                    raise schema.fault("required", f"demands {name[:64]!a}, which is not allowed")
                value = self._value(True if other is None else other, schema.at("additionalProperties"))
                given.append(Member(name=name, value=value, is_required=True))
        self._successions += successions(given)
        if self._successions > _MOST_SUCCESSIONS:
            raise schema.fault("properties", "has too many properties that may be left out")
        if given:
            return in_brackets("{}", members(given, self._rules, f"members-{len(self._rules)}"))
        if other is False:
            return in_brackets("{}", EMPTY)
        if other is None or other is True:
            return OBJECT
        value = self._value(other, schema.at("additionalProperties"))
        return in_brackets("{}", listed(sequence(STRING, Literal(":"), SPACE, value), 0, None))

    @staticmethod
    def _check_property_count(schema: Subschema, named: set[str], required: set[str]) -> None:
        """Let bounds stand that hold anyway."""
        if schema.count("minProperties", 0) > len(required):
            raise schema.fault("minProperties", "cannot be expressed exactly")
        if "maxProperties" in schema.keys and (not named or schema.count("maxProperties", 0) < len(named)):
            raise schema.fault("maxProperties", "cannot be expressed exactly")

    def _array(self, schema: Subschema) -> Node:
        low = schema.count("minItems", 0)
        high = schema.count("maxItems", 0) if "maxItems" in schema.keys else None
        if high is not None and high < low:
            raise schema.fault("maxItems", "is less than 'minItems'")
        if schema.get("uniqueItems", bool) and (high is None or high > 1):
            raise schema.fault("uniqueItems", "cannot be expressed exactly")
        first = schema.get("prefixItems", list) or []
        if first:
            return self._tuple(schema, first, low, high)
        items = schema.get("items")
        if items is None and not low and high is None:
            return ARRAY
        if items is False or high == 0:
            if low:
                raise schema.fault("minItems", "demands items that are not allowed")
            return in_brackets("[]", EMPTY)
        item = self._named(self._value(True if items is None else items, schema.at("items")))
        return in_brackets("[]", listed(item, low, high))

    def _tuple(self, schema: Subschema, first: list[object], low: int, high: int | None) -> Node:
        """Spell an array whose first items have schemas of their own, and no more than it must have."""
        count = len(first) if high is None else min(len(first), high)
        if low > count:
            raise schema.fault("minItems", "cannot be expressed exactly beyond 'prefixItems'")
        path = schema.at("prefixItems")
        items = [self._value(item, f"{path}[{number}]") for number, item in enumerate(first[:count])]
        if not items:
            return in_brackets("[]", EMPTY)
        rest = [part for item in items[1:] for part in (Literal(","), Rule("gap"), item)]
        return in_brackets("[]", sequence(items[0], *rest, Rule("gap")))

    def _string(self, schema: Subschema) -> Node:
        if "pattern" in schema.keys or "format" in schema.keys:
            return self._patterned(schema)
        if not schema.keys & {"minLength", "maxLength"}:
            return STRING
        low = schema.count("minLength", 0)
        high = schema.count("maxLength", 0) if "maxLength" in schema.keys else None
        if high is not None and high < low:
            raise schema.fault("maxLength", "is less than 'minLength'")
        return self._named(sequence(Literal('"'), repeat(CHARACTER, low, high), Literal('"')))

    def _patterned(self, schema: Subschema) -> Node:
        key = "pattern" if "pattern" in schema.keys else "format"
        others = schema.keys & {"pattern", "format", "minLength", "maxLength"} - {key}
        if others:
            raise schema.fault(min(others), f"cannot be combined with '{key}'")
        text = schema.get(key, str)
        if key == "format":
            if text not in FORMATS:
                raise schema.fault(
                    key, f"cannot be expressed exactly; those that can are {', '.join(FORMATS)}"
                )
            text = FORMATS[text]
        try:
            inner = parse_pattern(text)
        except GrammarError as error:
            raise schema.fault(key, str(error)) from error
        return self._named(sequence(Literal('"'), inner, Literal('"')))

    @staticmethod
    def _number(schema: Subschema, kind: str) -> Node:
        if schema.get("format") not in {None, *_NUMBER_FORMATS} and "string" not in types_of(schema):
            raise schema.fault("format", "cannot be expressed exactly for a number")
        bounds = bounds_of(schema)
        node = integers(bounds) if kind == "integer" else numbers(bounds)
        if node is None:
            raise SchemaError(schema.path, "has bounds that no number of at most 18 digits lies between")
        return node


def json_object_grammar() -> str:
    """Make the grammar of any JSON object."""
    return render({"root": OBJECT, **BASE_RULES})


def schema_grammar(schema: object, path: str) -> str:
    """Make the grammar of what a schema allows; see `SchemaCompiler`.

    Raises:
        SchemaError: It is no schema, cannot be expressed exactly, or is too large.
    """
    compiler = SchemaCompiler()
    return compiler.finish(compiler.compile(schema, path), path)

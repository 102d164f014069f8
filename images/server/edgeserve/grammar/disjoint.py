"""Whether two schemas can allow the same value: `oneOf` is the same as `anyOf` only where they cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edgeserve.grammar.keywords import Subschema, is_of_type, types_of

Resolve = Callable[[object], object]


def are_disjoint(one: object, other: object, resolve: Resolve) -> bool:
    """Say whether it is certain that no value fits both.

    Args:
        one: A schema.
        other: Another one.
        resolve: Follows a reference to what it stands for.
    """
    one, other = resolve(one), resolve(other)
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one is False or other is False
    if not _share_type(one, other):
        return True
    mine, theirs = _values(one), _values(other)
    if mine is not None and theirs is not None:
        return not {_key(value) for value in mine} & {_key(value) for value in theirs}
    return any(
        are_disjoint(mine_too, theirs_too, resolve)
        for mine_too, theirs_too in _shared_properties(one, other)
        if _values(resolve(mine_too)) is not None and _values(resolve(theirs_too)) is not None
    )


def _shared_properties(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[object, object]]:
    """Return the schemas of the properties that both demand."""
    if {_only_type(one), _only_type(other)} != {"object"}:
        return []
    names = set(one.get("required", ())) & set(other.get("required", ()))
    properties = one.get("properties", {}), other.get("properties", {})
    return [
        (properties[0][name], properties[1][name])
        for name in names
        if all(name in each for each in properties)
    ]


def _only_type(schema: dict[str, Any]) -> str:
    types = types_of(Subschema(schema, ""))
    return types[0] if len(types) == 1 else ""


def _values(schema: object) -> list[object] | None:
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return [schema["const"]]
    return schema.get("enum")


def _share_type(one: dict[str, Any], other: dict[str, Any]) -> bool:
    mine, theirs = _types(one), _types(other)
    if mine is None or theirs is None:
        return True
    return bool(mine & theirs)


def _types(schema: dict[str, Any]) -> set[str] | None:
    """Return the types of a schema, integers counting as numbers; None where another keyword decides."""
    if schema.keys() & {"anyOf", "oneOf", "allOf", "$ref"}:
        return None
    values = _values(schema)
    names = types_of(Subschema(schema, ""))
    if values is not None:
        names = tuple(name for name in names if any(is_of_type(value, (name,)) for value in values))
    return {"number" if name == "integer" else name for name in names}


def _key(value: object) -> str:
    """Spell a value so that equal values, and only they, are spelled alike: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)

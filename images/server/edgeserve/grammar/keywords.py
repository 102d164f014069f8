"""The keywords of JSON Schema: which there are, which types they are about, and where a fault stands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from edgeserve.grammar.numbers import LARGEST, Bounds

TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")
_NOTES: Final = frozenset(
    {
        "title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly",
        "writeOnly", "$defs", "definitions",
    }
)  # fmt: skip
_OF_TYPE: Final[Mapping[str, tuple[str, ...]]] = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_OF_ALL: Final = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"})
_KNOWN: Final = _NOTES | _OF_ALL | {key for keys in _OF_TYPE.values() for key in keys}


class SchemaError(Exception):
    """A schema cannot be used; `path` is where it stands in the request."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(what)
        self.path = path


class Subschema:
    """One schema that is an object, and where it stands; notes for people are left out."""

    def __init__(self, document: object, path: str) -> None:
        if not isinstance(document, dict):
            raise SchemaError(path, "must be a schema: an object, true or false")
        self.path = path
        self._document: dict[str, Any] = document
        self.keys = frozenset(document) - _NOTES
        for key in document:
            if key not in _KNOWN:
                raise self.fault(key, "cannot be expressed exactly")

    def at(self, key: str) -> str:
        """Return the path of a keyword."""
        shown = key if key.isascii() and key.isprintable() and len(key) <= 64 else ascii(key[:64])
        return f"{self.path}.{shown}"

    def fault(self, key: str, what: str) -> SchemaError:
        """Make the error for a keyword."""
        return SchemaError(self.at(key), what)

    def get(self, key: str, kind: type | None = None) -> Any:
        """Return a keyword's value, None if absent; `kind` is the JSON type that it must have."""
        value = self._document.get(key)
        if key in self._document and kind is not None and type(value) is not kind:
            raise self.fault(key, "has a value of the wrong type")
        return value

    def only(self, *keys: str) -> None:
        """Check that no other keyword has a say.

        Raises:
            SchemaError: One does.
        """
        others = self.keys.difference(keys)
        if others:
            raise self.fault(min(others), f"cannot be combined with '{keys[0]}'")

    def count(self, key: str, default: int) -> int:
        """Return a length or number of things."""
        value = self._document.get(key, default)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise self.fault(key, "must be an integer of at least 0")
        return value

    def strings(self, key: str) -> list[str]:
        """Return a list of strings, empty if absent."""
        values = self.get(key, list) or []
        if not all(isinstance(value, str) for value in values):
            raise self.fault(key, "must hold strings")
        return list(values)


def types_of(schema: Subschema) -> tuple[str, ...]:
    """Return the types that a schema allows; without `type`, those that its keywords are about, or all."""
    given = schema.get("type")
    if given is None:
        found = tuple(kind for kind, keys in _OF_TYPE.items() if schema.keys.intersection(keys))
        return found or TYPES
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        raise schema.fault("type", f"must be one or several of {', '.join(TYPES)}")
    return tuple(dict.fromkeys(names))


def type_of_value(value: object) -> str:
    """Return the JSON type of a value."""
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object")
    )  # fmt: skip
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def is_of_type(value: object, types: Collection[str]) -> bool:
    """Whether a value is of one of the types."""
    kind = type_of_value(value)
    if kind in types or (kind == "integer" and "number" in types):
        return True
    return isinstance(value, float) and value.is_integer() and "integer" in types


def bounds_of(schema: Subschema) -> Bounds:
    """Return the bounds of a number.

    Raises:
        SchemaError: One is not a whole number.
    """
    low, is_low_open = _tighter(schema, "minimum", "exclusiveMinimum", sign=1)
    high, is_high_open = _tighter(schema, "maximum", "exclusiveMaximum", sign=-1)
    return Bounds(low=low, high=high, is_low_open=is_low_open, is_high_open=is_high_open)


def _tighter(schema: Subschema, closed: str, opened: str, *, sign: int) -> tuple[int | None, bool]:
    inner, outer = _whole(schema, closed), _whole(schema, opened)
    if outer is None or (inner is not None and inner * sign > outer * sign):
        return inner, False
    return outer, True


def _whole(schema: Subschema, key: str) -> int | None:
    value = schema.get(key)
    if value is None:
        return None
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise schema.fault(key, "cannot be expressed exactly unless it is a whole number")
    return value

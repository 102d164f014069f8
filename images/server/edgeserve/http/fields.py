"""Takes a JSON object apart, strictly: every key is declared in a table and read by somebody, or named in an error; none is ignored.

`edgeserve.http.openapi` describes the same tables to clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar

from edgeserve.calls import FUNCTION_NAME
from edgeserve.errors import ApiError, invalid

_T = TypeVar("_T")
_NAMES: Final = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer:
    """An integer within bounds, both allowed."""

    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number within bounds, both allowed, and what counts where none is given."""

    low: float
    high: float
    default: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Neutral:
    """A field that OpenAI knows and this server does not do; `values` ask for nothing and are therefore accepted, as is null."""

    values: tuple[object, ...]


# `object` is what may be of several types.
Kind = (
    type[bool]
    | type[str]
    | type[list[Any]]
    | type[dict[str, Any]]
    | type[object]
    | Integer
    | Number
    | Neutral
)
Kinds = Mapping[str, Kind]


def make_neutral(fields: Mapping[str, tuple[object, ...]]) -> Kinds:
    """Declare fields that this server does not do, each with its values that ask for nothing."""
    return MappingProxyType({name: Neutral(values=values) for name, values in fields.items()})


class Fields:
    """One object and where it stands in the request; null counts as absent, as OpenAI's clients send it."""

    def __init__(self, document: Mapping[str, Any], kinds: Kinds, path: str = "") -> None:
        self._document = document
        self._kinds = kinds
        self._path = path
        self._left = set(document)

    def name(self, key: str) -> str:
        """Return the key's full path, for messages."""
        return f"{self._path}.{key}" if self._path else key

    def fault(self, key: str, what: str, *, code: str | None = None) -> ApiError:
        """Make the error for a key."""
        name = self.name(key)
        return invalid(f"'{name}' {what}.", name, code=code)

    def take(self, key: str) -> Any:
        """Return the value, None if absent or null."""
        assert key in self._kinds, key
        self._left.discard(key)
        return self._document.get(key)

    def typed(self, key: str, kind: type[_T]) -> _T | None:
        """Return the value if it is exactly of that JSON type."""
        value = self.take(key)
        if value is None:
            return None
        if type(value) is not kind:
            raise self.fault(key, f"must be {_NAMES[kind]}", code="invalid_type")
        return value

    def flag(self, key: str) -> bool:
        """Return a boolean, False if absent."""
        return bool(self.typed(key, bool))

    def integer(self, key: str) -> int | None:
        """Return an integer within its bounds."""
        kind, value = self._kinds[key], self.take(key)
        assert isinstance(kind, Integer)
        if value is None:
            return None
        number = whole_number(value)
        if number is None:
            raise self.fault(key, "must be an integer", code="invalid_type")
        if not kind.low <= number <= kind.high:
            raise self.fault(key, f"must be from {kind.low} to {kind.high}", code="out_of_range")
        return number

    def number(self, key: str) -> float:
        """Return a number within its bounds, or its default."""
        kind, value = self._kinds[key], self.take(key)
        assert isinstance(kind, Number)
        if value is None:
            return kind.default
        if type(value) not in {int, float}:
            raise self.fault(key, "must be a number", code="invalid_type")
        if not kind.low <= value <= kind.high:
            raise self.fault(key, f"must be from {kind.low:g} to {kind.high:g}", code="out_of_range")
        return float(value)

    def text(self, key: str) -> str | None:
        """Return a string that can be written as UTF-8."""
        value = self.typed(key, str)
        if value is not None and not is_unicode(value):
            raise self.fault(key, "holds half of a surrogate pair", code="invalid_text")
        return value

    def finish(self) -> None:
        """Refuse whatever nobody has read, but for neutral values of what this server does not do."""
        for key in sorted(self._left):
            kind = self._kinds.get(key)
            if not isinstance(kind, Neutral):
                shown = key if len(key) <= 64 and is_unicode(key) else ascii(key[:64])
                raise self.fault(shown, "is not a known field", code="unknown_parameter")
            value = self._document[key]
            if value is not None and not any(_are_same(value, one) for one in kind.values):
                raise self.fault(key, "is not supported by this server", code="unsupported_parameter")


def whole_number(value: object) -> int | None:
    """Return an integer as JSON Schema has it, which 1.0 is and true is not; None for what is none."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _are_same(value: object, other: object) -> bool:
    """Whether two JSON values are the same; Python takes true for 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: no lone surrogates, which JSON can spell."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def take_name(fields: Fields) -> str:
    """Take the name of a function or of a schema.

    Raises:
        ApiError: It is missing, or none that OpenAI allows.
    """
    name = fields.text("name")
    if name is None or FUNCTION_NAME.fullmatch(name) is None:
        raise fields.fault("name", "must be 1 to 64 of a-z, A-Z, 0-9, _ and -", code="invalid_value")
    return name

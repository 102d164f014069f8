"""Takes a JSON object apart, strictly: every key is read by somebody or named in an error, none is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from edgeserve.errors import ApiError, invalid

_T = TypeVar("_T")
_KINDS: Final = {bool: "a boolean", str: "a string", int: "an integer", list: "an array", dict: "an object"}


class Fields:
    """One object and where it stands in the request; null counts as absent, as OpenAI's clients send it."""

    def __init__(self, document: Mapping[str, Any], path: str = "") -> None:
        self._document = document
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
        self._left.discard(key)
        return self._document.get(key)

    def typed(self, key: str, kind: type[_T]) -> _T | None:
        """Return the value if it is exactly of that JSON type."""
        value = self.take(key)
        if value is None:
            return None
        if type(value) is not kind:
            raise self.fault(key, f"must be {_KINDS[kind]}", code="invalid_type")
        return value

    def flag(self, key: str) -> bool:
        """Return a boolean, False if absent."""
        return bool(self.typed(key, bool))

    def integer(self, key: str, *, low: int, high: int) -> int | None:
        """Return an integer within bounds."""
        value = self.typed(key, int)
        if value is not None and not low <= value <= high:
            raise self.fault(key, f"must be from {low} to {high}", code="out_of_range")
        return value

    def number(self, key: str, default: float, *, low: float, high: float) -> float:
        """Return a number within bounds."""
        value = self.take(key)
        if value is None:
            return default
        if type(value) not in {int, float}:
            raise self.fault(key, "must be a number", code="invalid_type")
        if not low <= value <= high:
            raise self.fault(key, f"must be from {low:g} to {high:g}", code="out_of_range")
        return float(value)

    def text(self, key: str) -> str | None:
        """Return a string that can be written as UTF-8."""
        value = self.typed(key, str)
        if value is not None and not is_unicode(value):
            raise self.fault(key, "holds half of a surrogate pair", code="invalid_text")
        return value

    def refuse(self, unsupported: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse fields that OpenAI knows and this server does not do.

        Args:
            unsupported: For each such field the values that ask for nothing and are therefore accepted.
        """
        for key, neutral in unsupported.items():
            value = self.take(key)
            if value is None or any(value == one and type(value) is type(one) for one in neutral):
                continue
            raise self.fault(key, "is not supported by this server", code="unsupported_parameter")

    def finish(self) -> None:
        """Refuse whatever nobody has read."""
        if self._left:
            key = min(self._left)
            shown = key if len(key) <= 64 and is_unicode(key) else ascii(key[:64])
            raise self.fault(shown, "is not a known field", code="unknown_parameter")


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: no lone surrogates, which JSON can spell."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

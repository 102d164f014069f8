"""JSON as the standard has it, and no more: no key twice, no NaN, no number that is infinite."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def load_json(text: str) -> Any:
    """Parse a document.

    Raises:
        json.JSONDecodeError: It is not JSON.
        ValueError: It is not acceptable; the message says why, to follow a colon.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise ValueError(f"the key {name[:64]!r} stands twice in one object")
        document[name] = value
    return document


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise ValueError("a number is too large")
    return value

"""Canonical JSON: the one way in which edgebuild writes JSON that is hashed, compared or signed.

A document is written once and from then on known by its bytes; it is parsed to be looked at and never written again.
"""

import json


def canonical_json(document: object) -> bytes:
    """Write `document` without white space, keys in the order given, UTF-8, no trailing newline.

    Key order is the writer's: OCI documents read best in the order of their specification, and Python keeps it.
    Floats are refused, since their text differs between languages.

    Raises:
        TypeError: A value is a float or not JSON.
    """
    _refuse_floats(document)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def pretty_json(document: object) -> bytes:
    """Write `document` for people: two spaces, a trailing newline, same order and same refusals."""
    _refuse_floats(document)
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _refuse_floats(value: object) -> None:
    if isinstance(value, float):
        raise TypeError(f"a float ({value!r}) has no canonical form")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key ({key!r}) is not a string")
            _refuse_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)

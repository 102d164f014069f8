"""Sizes, shares and switches as people write them in documents: "8GiB", "30%", on."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(value: object) -> object:
    """Read "8GiB", "32 GB" or a number of bytes as bytes; anything else is left for the validator to refuse."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
        if match and match[2].upper() in _UNITS:
            return round(float(match[1]) * _UNITS[match[2].upper()])
        raise ValueError(f"{value!r} is not a size; write e.g. 8GiB, 512MiB or 32GB")
    return value


def parse_percent(value: object) -> object:
    """Read "30%" or a fraction such as 0.3 as thousandths, so that no float enters a document."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]{1,2}(?:\.[0-9])?)\s*%\s*", value)
        if match:
            return round(float(match[1]) * 10)
        raise ValueError(f"{value!r} is not a share; write e.g. 30%")
    if isinstance(value, float) and 0 <= value < 1:
        return round(value * 1000)
    raise ValueError(f"{value!r} is not a share below one; write e.g. 30% or 0.3")


def parse_switch(value: object) -> object:
    """Read YAML's on and off, which are booleans in YAML 1.1, as the words they are."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def parse_shard_size(value: object) -> object:
    """Read a size of at least 1 MiB, or "none", which is 0."""
    if isinstance(value, str) and value.strip().lower() == "none":
        return 0
    size_bytes = parse_size(value)
    if (
        not isinstance(size_bytes, int)
        or isinstance(size_bytes, bool)
        or not _LEAST_SHARD <= size_bytes < 2**60
    ):
        raise ValueError(f"{value!r} is no size of shards; write at least 1MiB, or none")
    return size_bytes


# Smaller ones would be mostly headers.
_LEAST_SHARD = 1 << 20
_SIZE_SCHEMA: dict[str, list[object]] = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGT]i?)?B?\s*$"},
    ],
    "examples": ["8GiB"],
}
_SHARE_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        {"type": "string", "pattern": r"^[0-9]{1,2}(\.[0-9])?\s*%$"},
    ],
    "examples": ["30%"],
}

Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0, lt=2**60), WithJsonSchema(_SIZE_SCHEMA)]
ShardSize = Annotated[
    int,
    BeforeValidator(parse_shard_size),
    WithJsonSchema(
        {
            "anyOf": [*_SIZE_SCHEMA["anyOf"], {"const": "none"}],
            "default": "1GiB",
            "examples": ["512MiB", "none"],
        }
    ),
]
Share = Annotated[int, BeforeValidator(parse_percent), WithJsonSchema(_SHARE_SCHEMA)]

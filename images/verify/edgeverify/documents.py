"""JSON and base64 from strangers: read strictly, within bounds, or not at all."""

import binascii
import json
import re
from typing import Any

from edgeverify.errors import VerificationError, shown

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def parse_object(data: bytes, *, what: str, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object.

    Stricter than RFC 8259 asks: a key given twice is refused, because two readers could each believe another one of
    the two values. Nesting is bounded by the parser itself; nothing here walks a document recursively.

    Args:
        data: UTF-8 text.
        what: Name of the document, for errors.
        max_bytes: Longest text accepted.

    Raises:
        VerificationError: Too long, no JSON, not an object, nested too deep or ambiguous.
    """
    if len(data) > max_bytes:
        raise VerificationError(f"{what} has {len(data)} bytes, more than {max_bytes}")
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise VerificationError(f"{what} is nested too deep") from error
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError and the hooks' own
        raise VerificationError(f"{what} is not JSON: {shown(str(error))}") from error
    if not isinstance(document, dict):
        raise VerificationError(f"{what} is not a JSON object")
    return document


def parse_base64(text: object, *, what: str) -> bytes:
    """Read standard base64 with padding, nothing before, between or after.

    Raises:
        VerificationError: It is anything else.
    """
    if not isinstance(text, str):
        raise VerificationError(f"{what} is not base64 text")
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError as error:  # binascii.Error and UnicodeEncodeError
        raise VerificationError(f"{what} is not base64: {shown(str(error))}") from error


def check_digest(digest: object, *, what: str) -> str:
    """Return `digest` when it is "sha256:" and 64 lower-case hexadecimal digits.

    Raises:
        VerificationError: It is not; so a digest is always safe as part of a file name.
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise VerificationError(f"{what} {shown(digest)} is not a sha256 digest")
    return digest


def objects(value: object) -> tuple[dict[str, Any], ...]:
    """Give the objects of a list; anything else in it, and anything else than a list, counts for nothing."""
    return tuple(item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def field(document: object, *path: str) -> object:
    """Give what stands at `path` inside nested objects, or None."""
    for key in path:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is given twice")
    return document


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")

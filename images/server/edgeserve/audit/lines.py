"""The form of a line.

A line is a JSON object in ASCII without spaces, ended by a newline. It begins with `line`, its number from 1, `previous`,
the SHA-256 in hexadecimal of the line before without its newline, `time` and `kind`. Nothing is ever serialised a second
time to be hashed: a line is its bytes. A signed line ends with `signature`, ECDSA P-256 with SHA-256 in base64 of DER, over
the domain below and all that stands before `,"signature"`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

FORMAT: Final = 1
DOMAIN: Final = b"edgeserve audit 1\n"
SIGNATURE: Final = b',"signature":"'
_NOTHING: Final = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last line: its number, 0 before the first, and its SHA-256 in hexadecimal."""

    line: int
    digest: str


ORIGIN: Final = Head(line=0, digest=_NOTHING)
Sign = Callable[[bytes], bytes]


def encode_line(
    head: Head, fields: Mapping[str, object], *, time: str, sign: Sign | None
) -> tuple[bytes, Head]:
    """Write the line that follows `head`.

    Args:
        head: The line before.
        fields: `kind` first, then what that kind has.
        time: UTC as RFC 3339 writes it.
        sign: Makes the DER signature of what it is given; None for a line that is chained only.

    Returns:
        The line with its newline, and the new head.
    """
    document = {"line": head.line + 1, "previous": head.digest, "time": time, **fields}
    data = json.dumps(document, separators=(",", ":")).encode("ascii")
    if sign is not None:
        signed = data[:-1]
        data = signed + SIGNATURE + base64.b64encode(sign(DOMAIN + signed)) + b'"}'
    return data + b"\n", Head(line=head.line + 1, digest=hashlib.sha256(data).hexdigest())


def read_line(data: bytes) -> tuple[Head, Mapping[str, object]] | None:
    """Read a line without its newline.

    Returns:
        The line as a head for the next one, and its fields; None for what is no line.
    """
    try:
        fields = json.loads(data)
        number = fields["line"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(number) is not int:
        return None
    return Head(line=number, digest=hashlib.sha256(data).hexdigest()), fields


def split_signature(data: bytes) -> tuple[bytes, bytes] | None:
    """Take a signed line apart.

    Returns:
        What was signed and the DER signature; None for a line without one.
    """
    signed, marker, rest = data.rpartition(SIGNATURE)
    if not marker or not rest.endswith(b'"}'):
        return None
    try:
        return DOMAIN + signed, base64.b64decode(rest[:-2], validate=True)
    except ValueError:
        return None

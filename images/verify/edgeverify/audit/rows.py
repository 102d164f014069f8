"""The rows of the files of an audit log, read strictly and one by one."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from edgeverify.documents import parse_base64, parse_object
from edgeverify.errors import VerificationError
from edgeverify.keys import verify_data

_LONGEST_BYTES = 1 << 25
_DOMAIN = b"edgeserve audit 1\n"
_SIGNED = re.compile(rb'(.*),"signature":"([A-Za-z0-9+/]+={0,2})"\}\Z', re.DOTALL)
_HEX = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a file.

    Attributes:
        file: The file.
        number: From 1, within the file.
        is_whole: Whether a newline ends it.
        data: Its bytes without the newline.
    """

    file: Path
    number: int
    is_whole: bool
    data: bytes

    @property
    def place(self) -> str:
        """The file's name and the row, as in `audit-00000001.jsonl:17`."""
        return f"{self.file.name}:{self.number}"

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal, which the line that follows carries."""
        return hashlib.sha256(self.data).hexdigest()

    def parse(self) -> dict[str, Any]:
        """Read it as a line of an audit log.

        Raises:
            VerificationError: It is none.
        """
        fields = parse_object(self.data, what=self.place, max_bytes=_LONGEST_BYTES)
        number, previous, kind = fields.get("line"), fields.get("previous"), fields.get("kind")
        if type(number) is not int or number < 1 or not isinstance(kind, str):
            raise VerificationError(f"{self.place} is not a line of an audit log")
        if not isinstance(previous, str) or not _HEX.match(previous):
            raise VerificationError(f"{self.place} carries no hash of the line before")
        return fields

    def verify(self, key: ec.EllipticCurvePublicKey) -> None:
        """Verify its signature.

        Raises:
            VerificationError: It has none, or not one by this key.
        """
        match = _SIGNED.match(self.data)
        if match is None:
            raise VerificationError("it has no signature")
        verify_data(key, parse_base64(match[2].decode("ascii"), what="the signature"), _DOMAIN + match[1])


def read_rows(file: Path) -> Iterator[Row]:
    """Read a file row by row.

    Raises:
        VerificationError: It cannot be read, or a row is longer than any line is.
    """
    try:
        with file.open("rb") as opened:
            number = 0
            while data := opened.readline(_LONGEST_BYTES + 1):
                number += 1
                if len(data) > _LONGEST_BYTES:
                    raise VerificationError(f"{file.name}:{number} has more than {_LONGEST_BYTES} bytes")
                yield Row(
                    file=file, number=number, is_whole=data.endswith(b"\n"), data=data.removesuffix(b"\n")
                )
    except OSError as error:
        raise VerificationError(f"{file} cannot be read: {error.strerror or error}") from error


def expand(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Put the files of an audit log into their order; a folder stands for those in it.

    Raises:
        VerificationError: One cannot be read, or there is none.
    """
    files = [
        file for path in paths for file in (sorted(path.glob("audit-*.jsonl")) if path.is_dir() else (path,))
    ]
    if not files:
        raise VerificationError("there is no file of an audit log")
    return tuple(sorted(files, key=_first_line))


def _first_line(file: Path) -> int:
    """The number of a file's first line; what has none comes first, to be told at once."""
    row = next(read_rows(file), None)
    try:
        return 0 if row is None else int(row.parse()["line"])
    except VerificationError:
        return 0

"""Follows the chain of an audit log and finds what was changed, removed, added or put elsewhere.

1. Every line carries its number and the hash of the line before: a change shows in the line after it.
2. Signed lines close what precedes them: whoever makes the chain anew from some line on lacks the key for the next one.
3. What follows the last signed line is only chained; there are at most as many lines as the log's own header says.
4. The beginning may be gone if a signed line says so; that the end is gone shows by marks kept elsewhere alone.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edgeverify.audit.rows import Row, expand, read_rows
from edgeverify.errors import VerificationError, shown

_FORMAT = 1
_SIGNED_KINDS = frozenset({"file", "checkpoint", "dropped"})
_ORIGIN = "0" * 64
_MARK = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{13,64})\Z")
# Kinds that say what the log itself knows it lacks, with the words for it.
_NOTES = {
    "repaired": "the end of a file was cut off after a power failure ({cut_bytes} bytes)",
    "lost": "{lines} lines could not be written in time and are lost",
    "damaged": "the server found its file tampered with: {found}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A line that is known from elsewhere; `digest` is the beginning of its SHA-256, at least 13 hexadecimal digits."""

    line: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A log that verifies.

    Attributes:
        files: In order.
        first_line: Number of the first line that is there.
        last_line: Number of the last one.
        head: The last signed line, which may be kept as a mark.
        unsigned_lines: Lines after it, which are chained and not signed yet.
        notes: What the log itself tells of lines that are not in it, with places.
    """

    files: tuple[Path, ...]
    first_line: int
    last_line: int
    head: Mark
    unsigned_lines: int
    notes: tuple[str, ...]


def parse_mark(text: str) -> Mark:
    """Read a mark as people write it, `LINE:HASH`.

    Raises:
        VerificationError: It is none.
    """
    match = _MARK.match(text)
    if match is None:
        raise VerificationError(
            f"{shown(text)} is not LINE:HASH, a line's number and at least 13 hexadecimal digits"
        )
    return Mark(line=int(match[1]), digest=match[2])


def verify_audit(
    paths: Iterable[Path], key: ec.EllipticCurvePublicKey, *, marks: Sequence[Mark] = ()
) -> Audit:
    """Verify a log: all files that there still are, in whatever order.

    Raises:
        VerificationError: It is not what the device wrote; `reasons` name every place.
    """
    files = expand(paths)
    chain = _Chain(key, marks)
    for file in files:
        for row in read_rows(file):
            chain.take(row, is_last_file=file == files[-1])
    chain.end()
    if chain.faults:
        count = len(chain.faults)
        raise VerificationError(
            f"the audit log does not verify: {count} fault{'s' * (count > 1)}", reasons=tuple(chain.faults)
        )
    assert chain.head is not None
    return Audit(
        files=files,
        first_line=chain.first_line,
        last_line=chain.line,
        head=chain.head,
        unsigned_lines=chain.unsigned,
        notes=tuple(chain.notes),
    )


@dataclass(slots=True)
class _Chain:
    """The walk along the lines."""

    key: ec.EllipticCurvePublicKey
    marks: Sequence[Mark]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first_line: int = 0
    line: int = 0
    head: Mark | None = None
    unsigned: int = 0
    # The line before: its hash, None when it could not be read, and where it stands.
    _digest: str | None = _ORIGIN
    _place: str = ""
    _start: str | None = _ORIGIN
    _log: object = None
    _every: int = 0
    _dropped: set[tuple[int, str]] = field(default_factory=set)
    _met: set[int] = field(default_factory=set)

    def take(self, row: Row, *, is_last_file: bool) -> None:
        if not row.is_whole:
            self._take_torn(row, is_last_file=is_last_file)
            return
        try:
            fields = row.parse()
        except VerificationError as error:
            self.faults.append(error.message)
            self.line, self._digest, self._place = self.line + 1, None, row.place
            return
        self._follow(row, fields)
        self.line, self._digest, self._place = fields["line"], row.digest, row.place
        if row.number == 1:
            self._read_header(row, fields)
        self._check_signature(row, fields)
        self._check_marks(row)
        if fields["kind"] in _NOTES:
            self.notes.append(f"{row.place}: {_told(fields)}")

    def _take_torn(self, row: Row, *, is_last_file: bool) -> None:
        if is_last_file:
            self.notes.append(f"{row.place}: the last line is torn; the server cuts it off at its next start")
        else:
            self.faults.append(f"{row.place}: the file ends within a line")

    def _follow(self, row: Row, fields: dict[str, Any]) -> None:
        number, previous, expected = fields["line"], fields["previous"], self.line + 1
        if not self.first_line:
            # A first row that is no line was told already; what it followed is unknown.
            self.first_line, self._start = number, previous if self._digest is not None else None
            if number == 1 and previous != _ORIGIN:
                self.faults.append(f"{row.place}: line 1 carries the hash of a line before it")
        elif number > expected:
            what = (
                f"line {expected} is" if number == expected + 1 else f"lines {expected} to {number - 1} are"
            )
            self.faults.append(f"{row.place}: {what} missing before line {number}")
        elif number < expected:
            self.faults.append(f"{row.place}: line {number} stands where line {expected} belongs")
        elif self._digest is not None and previous != self._digest:
            self.faults.append(
                f"{self._place}: line {self.line} was changed: line {number} carries another hash of it"
            )

    def _read_header(self, row: Row, fields: dict[str, Any]) -> None:
        every = fields.get("checkpoint_lines")
        if fields["kind"] != "file" or fields.get("format") != _FORMAT or type(every) is not int:
            self.faults.append(f"{row.place}: not the beginning of a file of format {_FORMAT}")
            return
        if self._log is None:
            self._log = fields.get("log")
        if fields.get("log") != self._log:
            self.faults.append(f"{row.place}: another log begins here")
        own = _fingerprint(self.key)
        if fields.get("key") != own:
            self.faults.append(
                f"{row.place}: signed by key {shown(fields.get('key'))}, the given one is {own}"
            )
        self._every = max(self._every, every)

    def _check_signature(self, row: Row, fields: dict[str, Any]) -> None:
        if fields["kind"] not in _SIGNED_KINDS:
            self.unsigned += 1
            if self._every and self.unsigned == self._every + 1:
                self.faults.append(
                    f"{row.place}: more than {self._every} lines without a signature; checkpoints were removed"
                )
            return
        try:
            row.verify(self.key)
        except VerificationError as error:
            self.faults.append(f"{row.place}: line {self.line} is not as it was signed: {error.message}")
            return
        self.unsigned = 0
        self.head = Mark(line=self.line, digest=row.digest)
        if fields["kind"] == "dropped":
            self._dropped.add((fields.get("last_line", 0), fields.get("digest", "")))

    def _check_marks(self, row: Row) -> None:
        for mark in self.marks:
            if mark.line == self.line:
                self._met.add(mark.line)
                if not row.digest.startswith(mark.digest):
                    self.faults.append(
                        f"{row.place}: line {mark.line} is not the one that is known elsewhere"
                    )

    def end(self) -> None:
        """Judge what only the whole can tell."""
        if self.first_line > 1:
            before = self.first_line - 1
            if (before, self._start) in self._dropped:
                self.notes.insert(0, f"lines 1 to {before} were dropped to keep to the size bound")
            elif self._start is not None:
                self.faults.insert(
                    0, f"lines 1 to {before} are missing, and no signed line says that they were dropped"
                )
        if self.head is None:
            self.faults.append("no line is signed by this key")
        for mark in self.marks:
            if mark.line > self.line:
                self.faults.append(
                    f"{self._place}: the log ends with line {self.line}, and line {mark.line} is known elsewhere: its end was cut off"
                )
            elif mark.line not in self._met and mark.line < self.first_line:
                self.notes.append(f"line {mark.line}, known elsewhere, was dropped before")


def _told(fields: dict[str, Any]) -> str:
    """Say what a line of a kind in `_NOTES` tells; its values are a stranger's."""
    names = re.findall(r"\{(\w+)\}", _NOTES[fields["kind"]])
    return _NOTES[fields["kind"]].format(**{name: shown(fields.get(name)) for name in names})


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()

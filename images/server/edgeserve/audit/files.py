"""The files of the audit log: numbered, each continues the chain of the one before, the oldest go when there is no room.

1. Opening locks the folder, reads the end of the last file from its last signed line on, and cuts off what a power
   failure left half written; that is noted in the chain.
2. Lines are appended by one write each batch; what could not be written whole is taken back, so the end stays clean.
3. A full file ends with a checkpoint, the next one begins with a signed line that continues the chain.
4. Before the oldest file goes, a signed line says so: whoever verifies the rest knows where it begins, and why.
A file that is not what this process left is never written again: a new one continues the chain, which shows the gap.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeserve.audit.device_key import DeviceKey, sync_folder
from edgeserve.audit.errors import AuditError
from edgeserve.audit.lines import FORMAT, ORIGIN, Head, encode_line
from edgeserve.audit.reading import read_end, read_last_line
from edgeserve.log import timestamp
from edgeserve.settings import AuditSettings

_NAME: Final = re.compile(r"audit-([0-9]{8})\.jsonl\Z")
_SIGNED_KINDS: Final = frozenset({"file", "checkpoint", "dropped"})

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where the log is; `checkpoint` is the last signed line, `size_bytes` that of all files."""

    head: Head
    checkpoint: Head
    size_bytes: int


class AuditFiles:
    """One log in one folder; for one thread."""

    def __init__(self, folder: Path, settings: AuditSettings, key: DeviceKey) -> None:
        """Take the folder, which exists and which the caller has locked (`lock_folder`)."""
        self._folder = folder
        self._settings = settings
        self._key = key
        self._log_id = ""
        self._head = self._checkpoint = ORIGIN
        self._unsigned = 0
        self._number = 0
        self._descriptor = -1
        self._size = 0
        # Whether bytes beyond `_size` wait to be taken back.
        self._is_torn = False
        self._others_bytes = 0
        # What the chain shall tell with the next lines.
        self._notes: list[Fields] = []

    @property
    def standing(self) -> Standing:
        """Where the log is now."""
        return Standing(
            head=self._head,
            checkpoint=self._checkpoint,
            size_bytes=self._others_bytes + self._size,
        )

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self._path(self._number)

    def open(self) -> None:
        """Continue the log that is there, or begin one.

        Raises:
            AuditError: The folder cannot be read, or what is there is not a log of this device.
        """
        try:
            files = list_files(self._folder)
            while files and not self._continue(files[-1]):
                files.pop()
            self._others_bytes = sum(self._path(number).stat().st_size for number in files[:-1])
            if not files:
                self._log_id = secrets.token_hex(16)
                self._begin_file()
        except OSError as error:
            raise _cannot("open", self._folder, error) from error

    def close(self) -> None:
        """Let go of the file; nothing is written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def find_damage(self) -> str:
        """Say what became of the file that is written, other than by this process; an empty string when nothing did."""
        if self._descriptor < 0:
            return ""
        try:
            here, there = os.fstat(self._descriptor), self.path.stat()
        except FileNotFoundError:
            return f"{self.path} was removed"
        except OSError as error:
            raise _cannot("look at", self.path, error) from error
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            return f"{self.path} was replaced"
        if there.st_size != self._size and not self._is_torn:
            return f"{self.path} has {there.st_size} bytes, {self._size} were written"
        return ""

    def move_on(self) -> None:
        """Leave the present file as it is and continue the chain in a new one.

        Raises:
            AuditError: It cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._begin_file()
        except OSError as error:
            raise _cannot("write", self._folder, error) from error

    def append(self, entries: Sequence[Fields], *, checkpoint: str = "") -> None:
        """Write lines, all or none.

        Args:
            entries: Their fields, `kind` first.
            checkpoint: Why a checkpoint follows at once; empty: only where one is due by the number of lines.

        Raises:
            AuditError: They cannot be written; the log is as before.
        """
        try:
            if self._size >= self._settings.file_bytes:
                self._rotate()
            self._write([*self._notes, *entries], checkpoint=checkpoint)
            self._notes.clear()
        except OSError as error:
            raise _cannot("write", self.path, error) from error

    def checkpoint(self, reason: str) -> None:
        """Sign what was written since the last signature, if anything was.

        Raises:
            AuditError: It cannot be written.
        """
        if self._unsigned or self._notes:
            self.append((), checkpoint=reason)

    def _write(self, entries: Sequence[Fields], *, checkpoint: str = "") -> None:
        """Write lines and, by the policy, bring them to the disk; on a failure take them back."""
        now = timestamp(time.time())
        head, unsigned, signed = self._head, self._unsigned, None
        data = bytearray()
        for fields in self._with_checkpoints(entries, checkpoint):
            is_signed = fields["kind"] in _SIGNED_KINDS
            line, head = encode_line(head, fields, time=now, sign=self._key.sign if is_signed else None)
            data += line
            unsigned = 0 if is_signed else unsigned + 1
            signed = head if is_signed else signed
        self._take_back()
        try:
            _write_whole(self._descriptor, data)
            if signed is not None or self._settings.sync == "line":
                os.fdatasync(self._descriptor)
        except OSError:
            self._is_torn = True
            with suppress(OSError):
                self._take_back()
            raise
        self._size += len(data)
        self._head, self._unsigned = head, unsigned
        if signed is not None:
            self._checkpoint = signed

    def _take_back(self) -> None:
        """Cut off what a failed write left."""
        if self._is_torn:
            os.ftruncate(self._descriptor, self._size)
            self._is_torn = False

    def _with_checkpoints(self, entries: Sequence[Fields], reason: str) -> Sequence[Fields]:
        """Put checkpoints between the lines, so that no more than the set number are without a signature."""
        every, unsigned = self._settings.checkpoint_lines, self._unsigned
        out: list[Fields] = []
        for fields in entries:
            out.append(fields)
            unsigned = 0 if fields["kind"] in _SIGNED_KINDS else unsigned + 1
            if unsigned >= every:
                out.append({"kind": "checkpoint", "reason": "lines"})
                unsigned = 0
        if reason and (unsigned or not out):
            out.append({"kind": "checkpoint", "reason": reason})
        return out

    def _rotate(self) -> None:
        if self._unsigned:
            self._write((), checkpoint="file")
        os.fdatasync(self._descriptor)
        self._begin_file()
        self._drop_oldest()

    def _begin_file(self) -> None:
        """Make the next file durable with its first line, or leave no trace of it."""
        others = list_files(self._folder)
        number = max([self._number, *others]) + 1
        path = self._path(number)
        before = (self._descriptor, self._size, self._is_torn)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor, self._size, self._is_torn = os.open(path, flags, 0o600), 0, False
        header = {
            "kind": "file",
            "format": FORMAT,
            "log": self._log_id,
            "file": number,
            "key": self._key.fingerprint,
            "checkpoint_lines": self._settings.checkpoint_lines,
        }
        try:
            sync_folder(self._folder)
            self._write([header])
        except OSError:
            os.close(self._descriptor)
            self._descriptor, self._size, self._is_torn = before
            with suppress(OSError):
                path.unlink()
            raise
        if before[0] >= 0:
            os.close(before[0])
        self._number = number
        self._others_bytes = sum(self._path(other).stat().st_size for other in others)

    def _drop_oldest(self) -> None:
        """Make room: say in the chain what goes, bring that to the disk, and only then remove it."""
        for number in list_files(self._folder)[:-1]:
            if self._others_bytes + self._settings.file_bytes <= self._settings.total_bytes:
                return
            path = self._path(number)
            size, last = path.stat().st_size, read_last_line(path)
            if last is not None:
                gone = {"kind": "dropped", "file": number, "last_line": last.line, "digest": last.digest}
                self._write([gone])
            path.unlink()
            self._others_bytes -= size

    def _continue(self, number: int) -> bool:
        """Take up the chain at the end of a file; False, with the file removed, when not even its first line was written."""
        path = self._path(number)
        end = read_end(path, self._key)
        if end is None:
            self._note_repair(number, path.stat().st_size)
            path.unlink()
            return False
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor, self._size, self._number = os.open(path, flags), end.good_bytes, number
        self._log_id, self._head, self._checkpoint = end.log_id, end.head, end.checkpoint
        self._unsigned = end.head.line - end.checkpoint.line
        if end.good_bytes < end.size_bytes:
            os.ftruncate(self._descriptor, end.good_bytes)
            os.fdatasync(self._descriptor)
            self._note_repair(number, end.size_bytes - end.good_bytes)
        return True

    def _note_repair(self, number: int, cut_bytes: int) -> None:
        self._notes.append({"kind": "repaired", "file": number, "cut_bytes": cut_bytes})

    def _path(self, number: int) -> Path:
        return self._folder / f"audit-{number:08}.jsonl"


def lock_folder(folder: Path) -> int:
    """Make the folder if need be, and keep other servers out of it until the returned descriptor is closed.

    Raises:
        AuditError: It cannot be made, or another server has it.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot("open", folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            raise AuditError(f"{folder} is in use by another server") from error
        raise _cannot("lock", folder, error) from error
    return descriptor


def list_files(folder: Path) -> list[int]:
    """Return the numbers of the files, oldest first."""
    return sorted(int(match[1]) for name in os.listdir(folder) if (match := _NAME.match(name)))  # noqa: PTH208


def _write_whole(descriptor: int, data: bytearray) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _cannot(what: str, path: Path, error: OSError) -> AuditError:
    return AuditError(f"cannot {what} {path}: {error.strerror or error}")

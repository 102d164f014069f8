"""Writes the audit log in a thread of its own, so that no disk holds up the event loop, and says whether it can.

Lines that cannot be written wait and are tried again; when too many wait, further ones are counted instead, and the count
is the first thing written afterwards. So the chain always tells what it lacks.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgeserve import __version__
from edgeserve.audit.device_key import DeviceKey, DeviceKeyError, load_key, make_key
from edgeserve.audit.errors import AuditError
from edgeserve.audit.files import AuditFiles, Fields, Standing, lock_folder
from edgeserve.calls import ChatCall, EmbeddingCall
from edgeserve.log import Log, described, timestamp
from edgeserve.preflight.card import load_identities, model_digest
from edgeserve.records import Record
from edgeserve.settings import Runtime

FOLDER: Final = "audit"
_MOST_WAITING: Final = 4096
_BATCH: Final = 256
_LOOK_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailState:
    """How the log is.

    Attributes:
        problem: Why lines cannot be written now; an empty string while they can.
        damage: What somebody did to the files while they were written; stays until the next start.
        standing: Where the log is; None before it was opened.
        lost_lines: Lines that were never written, since the start.
    """

    problem: str = ""
    damage: str = ""
    standing: Standing | None = None
    lost_lines: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether everything that should be in the log is."""
        return not self.problem and not self.damage


class Trail:
    """The audit log of one server; an `Observer`. `state` is replaced as a whole, so any thread may read it."""

    def __init__(self, runtime: Runtime, *, log: Log, on_change: Callable[[], None]) -> None:
        """Prepare; nothing is opened.

        Args:
            runtime: The configuration, with a state folder.
            log: Where changes between sound and not are told.
            on_change: Called in the trail's thread when `state.is_sound` changes.
        """
        self._runtime = runtime
        self._settings = runtime.server.audit
        self._folder = Path(runtime.server.state_dir) / FOLDER
        self._model_digest = _model_digest(runtime, log)
        self._log = log
        self._on_change = on_change
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self.state = TrailState()
        # Guarded by the condition.
        self._inbox = threading.Condition()
        self._waiting: deque[tuple[float, Record]] = deque()
        self._refused: Counter[str] = Counter()
        self._dropped = 0
        self._is_closing = False
        # The thread's own, once it runs.
        self._lock = -1
        self._key: DeviceKey | None = None
        self._files: AuditFiles | None = None
        self._notes: list[Fields] = []
        self._checkpointed = time.monotonic()

    def open(self) -> None:
        """Open the log and write that the server started.

        Raises:
            AuditError: It cannot be opened; `start` tries again.
        """
        if self._lock < 0:
            self._lock = lock_folder(self._folder)
        try:
            self._key = self._key or _obtain_key(self._folder)
        except DeviceKeyError as error:
            raise AuditError(str(error)) from error
        files = AuditFiles(self._folder, self._settings, self._key)
        try:
            files.open()
            files.append((self._start_line(),), checkpoint="start")
        except AuditError:
            files.close()
            raise
        self._files = files
        self._publish(problem="")
        standing = files.standing
        self._log.info(
            "audit",
            file=files.path,
            line=standing.head.line,
            key=self._key.fingerprint,
            prompts="in the clear" if self._settings.prompts else "hashed",
            required=self._settings.required,
        )

    def start(self) -> None:
        """Write from now on."""
        self._thread.start()

    def on_request(self, record: Record) -> None:
        """See `edgeserve.records.Observer`.

        Requests that never came to have a prompt are counted: strangers who knock shall not push the history out.
        """
        with self._inbox:
            if not record.prompt:
                self._refused[str(record.status)] += record.status >= 400
            elif len(self._waiting) < _MOST_WAITING:
                self._waiting.append((time.time(), record))
                self._inbox.notify()
            else:
                self._dropped += 1

    def close(self, timeout_s: float) -> bool:
        """Write what waits and a last checkpoint, and end the thread.

        Returns:
            Whether it ended in time.
        """
        with self._inbox:
            self._is_closing = True
            self._inbox.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:  # noqa: BLE001 - the thread's last resort: an audit log that ends unseen is worse
            fields = described(error)
            self._log.error("audit-thread", **fields)
            self._publish(problem=f"unexpected {fields['exception']} at {fields['at']}")
        finally:
            if self._files is not None:
                self._files.close()
            if self._lock >= 0:
                os.close(self._lock)

    def _turn(self) -> bool:
        """Wait for lines or for the time to look at the files, and write; False when the thread shall end."""
        with self._inbox:
            has_work = self._is_closing or (not self.state.problem and (self._waiting or self._files is None))
            if not has_work:
                self._inbox.wait(_LOOK_S)
            is_closing = self._is_closing
        try:
            self._look()
            while self._write_some():
                pass
            self._sign(is_closing=is_closing)
        except AuditError as error:
            self._publish(problem=str(error))
        else:
            self._publish(problem="")
        return not is_closing

    def _look(self) -> None:
        """Open what is not open yet; leave a file that is no longer ours."""
        if self._files is None:
            self.open()
        assert self._files is not None
        damage = self._files.find_damage()
        if damage:
            self._publish(problem=self.state.problem, damage=damage)
            self._files.move_on()
            self._notes.append({"kind": "damaged", "found": damage})

    def _write_some(self) -> bool:
        """Write up to one batch; False when nothing is left."""
        files, key = self._files, self._key
        assert files is not None
        assert key is not None
        with self._inbox:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._notes.append({"kind": "lost", "lines": dropped})
            self.state = replace(self.state, lost_lines=self.state.lost_lines + dropped)
        if not batch and not self._notes:
            return False
        try:
            files.append([*self._notes, *(self._request_line(at, record, key) for at, record in batch)])
        except AuditError:
            with self._inbox:
                self._waiting.extendleft(reversed(batch))
            raise
        self._notes.clear()
        return True

    def _sign(self, *, is_closing: bool) -> None:
        """Sign what is due: after some time, and at the end."""
        assert self._files is not None
        now = time.monotonic()
        if not is_closing and now - self._checkpointed < self._settings.checkpoint_s:
            return
        with self._inbox:
            refused = {status: count for status, count in self._refused.items() if count}
            self._refused.clear()
        if refused:
            self._notes.append({"kind": "refused", "statuses": refused})
        if is_closing:
            self._notes.append({"kind": "stop"})
        if self._notes:
            self._files.append(self._notes)
            self._notes.clear()
        self._files.checkpoint("stop" if is_closing else "time")
        self._checkpointed = now

    def _publish(self, *, problem: str, damage: str = "") -> None:
        """Make known how the log is, and tell of changes."""
        before = self.state
        standing = self._files.standing if self._files is not None else None
        damage = damage or before.damage
        self.state = replace(before, problem=problem, damage=damage, standing=standing)
        if damage != before.damage:
            self._log.error("audit", problem=damage)
        if problem != before.problem:
            if problem:
                self._log.error("audit", problem=problem)
            else:
                self._log.info("audit", note="written again")
        if self.state.is_sound != before.is_sound:
            self._on_change()

    def _start_line(self) -> Fields:
        return {
            "kind": "start",
            "version": __version__,
            "profile": self._runtime.profile,
            "model": self._runtime.model.name,
            "model_digest": self._model_digest,
        }

    def _request_line(self, at: float, record: Record, key: DeviceKey) -> Fields:
        """Describe a request; `ended` is when it was over, which may be before the line could be written."""
        fields: dict[str, object] = {
            "kind": "request",
            "ended": timestamp(at),
            "interface": record.interface,
            "route": record.route,
            "client": record.client.name,
            "model_digest": self._model_digest,
            "prompt_hmac": key.hash_prompt(record.prompt),
            "prompt_tokens": len(record.prompt),
            "outcome": record.result,
            "status": record.status,
            "seconds": round(record.seconds, 3),
        }
        if record.end is not None:
            fields |= {
                "cached_tokens": record.end.cached_tokens,
                "output_tokens": record.end.output_tokens,
            }
        if self._settings.prompts:
            fields["prompt"] = _asked(record)
            if isinstance(record.call, ChatCall) and record.call.tools is not None:
                fields["tools"] = list(record.call.tools.definitions)
        return fields


def _asked(record: Record) -> object:
    """Return what the client asked, in its own form."""
    call = record.call
    if call is None:
        return None
    if isinstance(call, EmbeddingCall):
        return list(call.inputs)
    return [dict(message) for message in call.messages] if isinstance(call, ChatCall) else call.prompt


def _model_digest(runtime: Runtime, log: Log) -> str:
    """Read from the model's document what identifies the files that are served."""
    if not runtime.model.card:
        return ""
    try:
        identities = load_identities(Path(runtime.model.card))
        return model_digest(identities, runtime.model.files)
    except (ValueError, KeyError) as error:
        log.warning("audit", note="the model's digest is not known", reason=error)
        return ""


def _obtain_key(folder: Path) -> DeviceKey:
    """Read the device's key, or make one where there is neither a key nor anything that one has signed."""
    try:
        return load_key(folder.parent)
    except FileNotFoundError:
        if any(folder.glob("*.jsonl")):
            raise AuditError(
                f"{folder.parent} has an audit log and no key to it; bring the key back, or move the log away"
            ) from None
        return make_key(folder.parent)

"""What the worker tells edgebuild: one JSON object a line, on what was standard output when it began."""

import json
import os
import sys
from typing import IO, Any

# Exit code of a run that SIGTERM stopped.
STOPPED = 3


class WorkerError(Exception):
    """Something that the user can mend.

    Attributes:
        kind: "model", "text", "disk", "memory", "file" or "diverged".
        hint: What to do about it; empty when the message says it all.
    """

    def __init__(self, kind: str, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.hint = hint


class Events:
    """Writes events."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    @classmethod
    def on_standard_output(cls) -> "Events":
        """Take standard output for events alone: what libraries print goes to standard error from now on."""
        stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return cls(stream)

    def phase(self, title: str) -> None:
        """Say what is done from now on."""
        self._tell({"event": "phase", "title": title})

    def progress(self, done: int, total: int, unit: str) -> None:
        """Say how far the phase is."""
        self._tell({"event": "progress", "done": done, "total": total, "unit": unit})

    def step(self, document: dict[str, Any]) -> None:
        """Tell of one step of training."""
        self._tell({"event": "step", **document})

    def note(self, text: str) -> None:
        """Tell one line that a person should see."""
        self._tell({"event": "note", "text": text})

    def result(self, document: dict[str, Any]) -> None:
        """Give what came out; the last event."""
        self._tell({"event": "result", "result": document})

    def error(self, error: WorkerError) -> None:
        """Say why it ends; the last event."""
        self._tell({"event": "error", "kind": error.kind, "message": str(error), "hint": error.hint})

    def _tell(self, document: dict[str, Any]) -> None:
        self._stream.write(json.dumps(document) + "\n")
        self._stream.flush()

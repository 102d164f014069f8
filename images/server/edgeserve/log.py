"""One line per event on standard error, as `time level event key=value …`; never a prompt, never an answer."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from typing import Final

_BARE: Final = re.compile(r"[A-Za-z0-9_.:/@+%,-]+\Z")
_LONGEST_VALUE: Final = 2000


class Log:
    """Writes events to a file descriptor; a line that cannot be written is dropped, for logging must not stop serving."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor

    def info(self, event: str, **fields: object) -> None:
        """Record something that went as it should."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record something that an operator should know."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Record something that failed."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        parts = [
            timestamp(time.time()),
            level,
            event,
            *(f"{name}={_shown(value)}" for name, value in fields.items()),
        ]
        try:
            # One write call per line: lines of several threads do not mix (POSIX write on a pipe up to PIPE_BUF).
            os.write(self._descriptor, (" ".join(parts) + "\n").encode("utf-8", "backslashreplace"))
        except OSError:
            return


def timestamp(now: float) -> str:
    """Write a time, in seconds since 1970, as RFC 3339 does: UTC, with milliseconds."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"


def _shown(value: object) -> str:
    """Render a value so that it can neither break the line nor forge another field."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if len(text) > _LONGEST_VALUE:
        text = text[:_LONGEST_VALUE] + "…"
    return text if _BARE.match(text) else json.dumps(text, ensure_ascii=True)


class Bridge(logging.Handler):
    """Brings the records of libraries that use `logging` (uvicorn, grpcio, asyncio) into the same one-line form."""

    def __init__(self, log: Log) -> None:
        super().__init__(level=logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; the traceback is reduced to its last frame, which names file and line."""
        fields: dict[str, object] = {"logger": record.name, "message": record.getMessage().strip()}
        if record.exc_info is not None and record.exc_info[1] is not None:
            fields |= described(record.exc_info[1])
        (self._log.error if record.levelno >= logging.ERROR else self._log.warning)("library", **fields)


def described(error: BaseException) -> dict[str, object]:
    """Name an unexpected exception and the line that raised it, without its values, which may hold a prompt.

    Returns:
        The fields `exception` (class) and `at` (file:line of the innermost frame).
    """
    where = "?"
    trace = error.__traceback__
    while trace is not None:
        where = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119
        trace = trace.tb_next
    return {"exception": type(error).__name__, "at": where}


def bridge_logging(log: Log) -> None:
    """Send what uvicorn, grpcio and asyncio log, from warnings up, to `log`."""
    for name in ("uvicorn", "grpc", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [Bridge(log)]
        logger.propagate = False

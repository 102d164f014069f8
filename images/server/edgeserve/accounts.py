"""Who keeps account of requests: the log always, metrics and the audit log where they are on. Imports what is on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from edgeserve.grpc import PROBES as GRPC_PROBES
from edgeserve.http.app import ROUTINE
from edgeserve.log import Log
from edgeserve.records import Observer, RequestLog
from edgeserve.scheduler import Scheduler
from edgeserve.settings import Runtime

if TYPE_CHECKING:
    from edgeserve.audit.trail import Trail
    from edgeserve.metrics.exposition import Metrics

# To bring the last lines and a checkpoint to a slow disk.
_LAST_LINES_S: Final = 5.0
# What is asked for all day, of either interface: noted only where it fails.
_QUIET: Final = ROUTINE | GRPC_PROBES


class Accounts:
    """All of them, for one run of the server; for the event loop."""

    def __init__(
        self, runtime: Runtime, log: Log, scheduler: Scheduler, *, on_hold: Callable[[], None]
    ) -> None:
        """Make them.

        Args:
            runtime: The configuration.
            log: The log.
            scheduler: Measured, and held while a required audit log cannot be written.
            on_hold: Called on the event loop after the scheduler was held or let go.
        """
        self._scheduler = scheduler
        self._on_hold = on_hold
        self._is_required = runtime.server.audit.required
        self._loop = asyncio.get_running_loop()
        self._log = RequestLog(log, quiet=_QUIET)
        self.trail = _make_trail(runtime, log, self) if runtime.server.audit.enabled else None
        self.metrics = (
            _make_metrics(runtime, scheduler, self.trail) if runtime.server.metrics.enabled else None
        )

    @property
    def observers(self) -> Sequence[Observer]:
        """Who is to hear of every request."""
        found: list[Observer] = [self._log]
        if self.metrics is not None:
            found.append(self.metrics.requests)
        if self.trail is not None:
            found.append(self.trail)
        return found

    def open(self) -> None:
        """Begin.

        Raises:
            AuditError: The audit log is required and cannot be opened; otherwise that is tried again and again.
        """
        if self.trail is not None:
            if self._is_required:
                self.trail.open()
            self.trail.start()

    def close(self) -> None:
        """End; takes its time, so not on the event loop."""
        if self.metrics is not None:
            self.metrics.close()
        if self.trail is not None:
            self.trail.close(_LAST_LINES_S)

    def on_audit(self) -> None:
        """Hear, in the audit log's thread, that it can or cannot be written now."""
        with suppress(RuntimeError):  # the loop is closed: nothing is served any more
            self._loop.call_soon_threadsafe(self._follow_audit)

    def _follow_audit(self) -> None:
        if self._is_required and self.trail is not None:
            self._scheduler.hold(not self.trail.state.is_sound)
            self._on_hold()


def _make_metrics(runtime: Runtime, scheduler: Scheduler, trail: Trail | None) -> Metrics:
    # 3 MB of memory, which a device without Prometheus keeps.
    from edgeserve.metrics.exposition import Metrics  # noqa: PLC0415

    return Metrics(runtime, scheduler, trail, quiet=_QUIET)


def _make_trail(runtime: Runtime, log: Log, accounts: Accounts) -> Trail:
    # 10 MB of memory, for cryptography.
    from edgeserve.audit.trail import Trail  # noqa: PLC0415

    return Trail(runtime, log=log, on_change=accounts.on_audit)

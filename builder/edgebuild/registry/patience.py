"""How often and how long something is tried again. The only place that waits."""

import threading
import time
from dataclasses import dataclass

from edgebuild.errors import RegistryError
from edgebuild.progress import Progress
from edgebuild.registry.faults import TransientError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient the client is.

    Attributes:
        connect_s: Seconds for a connection to be made.
        idle_s: Seconds without a byte in either direction after which a connection counts as dead.
        commit_s: Seconds for a registry to answer the end of an upload: some hash or copy gigabytes then.
        attempts: Tries without any progress, at least 1.
        deadline_s: Seconds without any progress, waits included, after which nothing is tried again.
        backoff_s: Seconds before the second try; doubled for each further one, at most `backoff_cap_s`.
        backoff_cap_s: Longest wait of our own, in seconds. A registry's Retry-After may be longer.
    """

    connect_s: float = 10.0
    idle_s: float = 60.0
    commit_s: float = 600.0
    attempts: int = 5
    deadline_s: float = 180.0
    backoff_s: float = 0.5
    backoff_cap_s: float = 15.0


class Patience:
    """Counts the tries of one piece of work since it last got further."""

    def __init__(self, limits: Limits, *, closing: threading.Event, progress: Progress) -> None:
        self._limits = limits
        self._closing = closing
        self._progress = progress
        self._failures = 0
        self._since_s = time.monotonic()

    def progressed(self) -> None:
        """Say that the work got further than ever before."""
        self._failures = 0
        self._since_s = time.monotonic()

    def wait(self, fault: RegistryError) -> None:
        """Wait before another try.

        Raises:
            RegistryError: There were tries enough, or the wait would last beyond the deadline.
        """
        self._failures += 1
        spent_s = time.monotonic() - self._since_s
        wait_s = min(self._limits.backoff_s * 2 ** (self._failures - 1), self._limits.backoff_cap_s)
        asked_s = fault.retry_after_s if isinstance(fault, TransientError) else None
        wait_s = max(wait_s, asked_s or 0.0)
        if self._failures >= self._limits.attempts:
            raise RegistryError(
                f"{fault.message} (gave up after {self._failures} tries in {spent_s:.0f} s)", hint=fault.hint
            ) from fault
        if spent_s + wait_s > self._limits.deadline_s:
            asked = f"asked to wait {asked_s:.0f} s, " if asked_s and asked_s >= wait_s else ""
            raise RegistryError(
                f"{fault.message} ({asked}gave up after {spent_s:.0f} s)", hint=fault.hint
            ) from fault
        self._progress.note(f"{fault.message}; trying again in {wait_s:.1f} s")
        if self._closing.wait(wait_s):
            raise RegistryError(f"{fault.message} (stopped)", hint=fault.hint) from fault

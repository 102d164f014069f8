"""How often and how long something is asked for again: the only place of downloads that waits."""

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server is asked.

    Attributes:
        attempts: Tries that did not get further, at least 1.
        deadline_s: Seconds without getting further, waits included, after which nothing is tried again.
        backoff_s: Seconds before the second try; doubled for each further one. A server's Retry-After may be longer.
        idle_s: Seconds without a byte after which a connection counts as dead.
    """

    attempts: int = 5
    deadline_s: float = 120.0
    backoff_s: float = 0.5
    idle_s: float = 60.0


USUAL = Patience()
# Answers of servers that may be others the next time.
RETRYABLE_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class TryAgainError(Exception):
    """A failure that may pass.

    Attributes:
        retry_after_s: Seconds that the server asked to wait, or 0.
    """

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class GaveUpError(Exception):
    """There were tries enough, or the wait would last beyond the deadline; its text says so."""


class Tries:
    """Counts the tries of one piece of work since it last got further."""

    def __init__(self, patience: Patience, stop: threading.Event) -> None:
        """Begin to count.

        Args:
            patience: When to give up.
            stop: Ends a wait.
        """
        self._patience = patience
        self._stop = stop
        self._failures = 0
        self._since_s = time.monotonic()

    def progressed(self) -> None:
        """Say that the work got further than ever before."""
        self._failures = 0
        self._since_s = time.monotonic()

    def wait(self, fault: Exception) -> None:
        """Wait before another try; returns at once when the work is stopped.

        Raises:
            GaveUpError: Nothing is tried again.
        """
        self._failures += 1
        asked_s = fault.retry_after_s if isinstance(fault, TryAgainError) else 0.0
        wait_s = max(self._patience.backoff_s * 2 ** (self._failures - 1), asked_s)
        spent_s = time.monotonic() - self._since_s
        if self._failures >= self._patience.attempts or spent_s + wait_s > self._patience.deadline_s:
            asked = f"asked to wait {asked_s:.0f} s, " if asked_s and asked_s == wait_s else ""
            raise GaveUpError(
                f"{reason_of(fault)} ({asked}tried {self._failures} times without getting further)"
            )
        self._stop.wait(wait_s)


def reason_of(fault: Exception) -> str:
    """Say in a few words what went wrong."""
    return str(fault) or type(fault).__name__

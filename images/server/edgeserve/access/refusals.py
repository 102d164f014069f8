"""Connections that are turned away, told sparingly: whoever opens thousands should not fill the log too."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from edgeserve.log import Log

_LOG_EVERY_S: Final = 10.0


class Refusals:
    """Logs refusals, not more than one of a kind every few seconds."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._waiting: Counter[str] = Counter()
        self._told: dict[str, float] = {}

    def tell(self, reason: str, address: str, *, count: int = 1) -> None:
        """Log the refusal of `count` connections from an address, with those of this kind that were not told of."""
        self._waiting[reason] += count
        now = time.monotonic()
        if now - self._told.get(reason, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._told[reason] = now
            self._log.warning("refused", reason=reason, address=address, count=self._waiting.pop(reason))

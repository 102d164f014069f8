"""Memory that large requests leave behind: given back to the system as soon as may be."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from typing import Final

from edgeserve.records import Record

# mallopt(3), malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Above what llama.cpp takes and gives back for every token: 12 bytes for each of the vocabulary.
_LARGE_BLOCK_BYTES: Final = 4 << 20
# The default bound of bodies: whoever leaves it as it is never pays for this.
_LARGE_REQUEST_BYTES: Final = 1 << 20
_SOON_S: Final = 0.5


def bound_heap() -> bool:
    """Have the C library map large blocks, and give them back when they are free; False where it does not.

    By itself it raises both thresholds to the largest block that was ever given back, up to 32 MiB and twice that, and the
    memory of one large request stays with the process.
    """
    library = ctypes.CDLL(None)
    parameters = (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    return all(library.mallopt(parameter, _LARGE_BLOCK_BYTES) for parameter in parameters)


class Sweeper:
    """Collects garbage soon after a large request; an observer of requests, for the event loop.

    A refusal and the calls that it came through refer to each other, and these to the request: the collector, which looks at
    what is old only when much is new, would let that lie for hours.
    """

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._is_due_again = False

    def on_request(self, record: Record) -> None:
        """See `Observer`."""
        if record.size_bytes <= _LARGE_REQUEST_BYTES:
            return
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SOON_S, self._sweep)
        else:
            # What it leaves may still be in use when the timer ends.
            self._is_due_again = True

    def _sweep(self) -> None:
        gc.collect()
        self._timer = None
        if self._is_due_again:
            self._is_due_again = False
            self._timer = asyncio.get_running_loop().call_later(_SOON_S, self._sweep)

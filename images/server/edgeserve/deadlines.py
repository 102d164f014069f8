"""When a request must have got somewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeserve.settings import LimitSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Event loop times by which the first token must be generated and the whole request be over."""

    first_token: float
    end: float


def make_deadlines(limits: LimitSettings, *, now: float, client_s: float = math.inf) -> Deadlines:
    """Say when a request that begins at the event loop time `now` must have got somewhere.

    Args:
        limits: The server's own limits.
        now: Event loop time.
        client_s: How long the client itself is going to wait, in seconds.
    """
    whole_s = min(limits.request_s, client_s)
    first_token_s = limits.first_token_s or math.inf
    return Deadlines(first_token=now + min(first_token_s, whole_s), end=now + whole_s)

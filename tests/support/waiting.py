"""Waiting for what another process does."""

import time
from collections.abc import Callable


def wait_until(done: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Ask again and again until the answer is yes; fail after so many seconds."""
    end_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end_s, f"still not after {timeout_s:g} s"
        time.sleep(0.02)

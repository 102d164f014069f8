"""A soak: many requests from many clients, a tenth of which leave midway, and what the server is like afterwards."""

import http.client
import random
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from tests.support.load import Answer, Call, run_calls

CLIENTS = 32
REQUESTS = 1000
# The largest growth of the memory from after the warm-up to after the soak.
GROWTH = 0.05
_LEAVES_EVERY = 10
_OUTPUT_TOKENS = 24
_SETTLES_S = 5.0


def soak(port: int, *, model: str, requests: int = REQUESTS, seed: int = 0) -> list[Answer]:
    """Send questions of many lengths, of which every tenth client leaves before its answer is complete.

    Returns:
        The answers to all others.

    Raises:
        AssertionError: One of these did not get a whole answer, or too few left.
    """
    answers = run_calls(port, _calls(model, requests, random.Random(seed)), clients=CLIENTS)
    stayed = [answer for answer in answers if not answer.has_left]
    failed = [answer for answer in stayed if answer.status != 200 or answer.finish not in {"stop", "length"}]
    assert not failed, f"{len(failed)} of {requests} failed, the first with {failed[0].describe()}"
    # One whose answer was short, or there as a whole when it looked, could not leave.
    left, wanted = len(answers) - len(stayed), requests // _LEAVES_EVERY
    assert wanted // 2 <= left <= wanted, f"{left} clients left, of {wanted}"
    return stayed


def under_way(port: int) -> float:
    """Count the requests that hold a slot or wait for one, by the server's own metrics, once the last has had time to end."""
    deadline_s = time.monotonic() + _SETTLES_S
    while True:
        metrics = _scrape(port)
        count = metrics["edgeserve_slots_busy"] + metrics["edgeserve_queue_requests"]
        if not count or time.monotonic() > deadline_s:
            return count
        time.sleep(0.05)


def _scrape(port: int) -> dict[str, float]:
    """Read the metrics without labels (Prometheus text format)."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    pairs = (line.split(" ") for line in lines if not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, value in pairs}


def _calls(model: str, requests: int, chance: random.Random) -> Iterator[Call]:
    for number in range(requests):
        leaves = number % _LEAVES_EVERY == _LEAVES_EVERY - 1
        document: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": _question(chance)}],
            "max_tokens": _OUTPUT_TOKENS if leaves else chance.randint(1, _OUTPUT_TOKENS),
            "temperature": chance.choice((0, 1)),
            "seed": number,
        }
        # The first event holds no text yet.
        yield Call(
            path="/v1/chat/completions",
            document=document,
            leaves_after=chance.randint(2, 5) if leaves else 0,
        )


def _question(chance: random.Random) -> str:
    """Make a line as the demo model knows them, of which now and then a part is missing."""
    parts = (
        f"alt {chance.randint(1, 400)} m",
        f"speed {chance.randint(0, 30)} m/s",
        f"obstacle {chance.randint(1, 90)} m {chance.choice(('left', 'right', 'ahead'))}",
        f"battery {chance.randint(1, 100)} %",
        f"temp {chance.randint(-20, 90)} C",
        "gps ok",
    )
    return "; ".join(part for part in parts if chance.random() < 0.8) or "gps ok"

"""A soak: many requests from many clients, a tenth of which leave midway, and what the server is like afterwards."""

import random
from collections.abc import Iterator
from typing import Any

from tests.support.load import Answer, Call, run_calls

CLIENTS = 32
REQUESTS = 1000
# The largest growth of the memory from after the warm-up to after the soak.
GROWTH = 0.05
_LEAVES_EVERY = 10
_OUTPUT_TOKENS = 24


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
    # One whose answer happened to be shorter than it meant to read could not leave.
    left, wanted = len(answers) - len(stayed), requests // _LEAVES_EVERY
    assert 0.8 * wanted <= left <= wanted, f"{left} clients left, of {wanted}"
    return stayed


def all_slots_answer(port: int, *, model: str, slots: int, output_tokens: int) -> bool:
    """Ask for long answers, one for each slot, and say whether each begins before any ends: then no slot was held."""
    document = {"model": model, "prompt": "a", "max_tokens": output_tokens, "temperature": 1}
    answers = run_calls(port, [Call(document=document)] * slots, clients=slots)
    assert all(answer.status == 200 for answer in answers), [answer.describe() for answer in answers]
    return max(answer.first_s for answer in answers) < min(answer.end_s for answer in answers)


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

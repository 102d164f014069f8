"""What is asked of every server, and what an answer took."""

import http.client
import json
import random
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tests.support.load import Answer, Call, run_calls
from tests.support.unpacked import Running

# Given in full, as the servers' defaults differ.
_SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
# Each is one token of the model's vocabulary, with the space before it.
_WORDS = ("the", "and", "Obstacle", "ahead", "left", "right", "Battery", "low")
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked.

    Attributes:
        streams: Answers at the same time.
        prompt_tokens: Length of each prompt, roughly.
        output_tokens: Length of each answer.
    """

    streams: int
    prompt_tokens: int
    output_tokens: int

    def document(self, model: str, seed: int) -> dict[str, Any]:
        """Give the body of a completion; of another seed the prompt has nothing in common but its first token."""
        words = random.Random(seed).choices(_WORDS, k=self.prompt_tokens)
        return {
            "model": model,
            "prompt": f"{seed} " + " ".join(words),
            "max_tokens": self.output_tokens,
            "seed": seed,
            **_SAMPLING,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What it took.

    Attributes:
        tokens_per_s: Tokens of all answers by the seconds from the first request to the last byte.
        first_s: Seconds from a request to its first event, the longest.
    """

    tokens_per_s: float
    first_s: float


def ask(server: Running, asked: Asked, *, seed: int) -> Took:
    """Ask a server.

    Raises:
        SystemExit: It did not answer in full.
    """
    calls = [
        Call(document=asked.document(server.model, seed * 100 + number)) for number in range(asked.streams)
    ]
    answers = run_calls(server.port, calls, clients=asked.streams)
    for answer in answers:
        _check(server, answer)
    whole_s = max(answer.end_s for answer in answers) - min(answer.begin_s for answer in answers)
    return Took(
        tokens_per_s=asked.streams * asked.output_tokens / whole_s,
        first_s=max(answer.first_s - answer.begin_s for answer in answers),
    )


def prompt_tokens(server: Running, asked: Asked) -> int:
    """Return how many tokens a server makes of a prompt, and warm it up."""
    body = json.dumps(asked.document(server.model, seed=0))
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT_S)) as connection:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    if response.status != 200:
        raise SystemExit(f"{server.name} answered {response.status}: {text[-300:]!r}; see {server.log}")
    usage: Mapping[str, int] = json.loads(text)["usage"]
    if usage["completion_tokens"] != asked.output_tokens:
        raise SystemExit(f"{server.name} made {usage['completion_tokens']} of {asked.output_tokens} tokens")
    return usage["prompt_tokens"]


def _check(server: Running, answer: Answer) -> None:
    # Cut off at its length, so the number of its tokens is the one asked for.
    if answer.status != 200 or answer.finish != "length":
        raise SystemExit(f"{server.name} did not answer: {answer.describe()}")

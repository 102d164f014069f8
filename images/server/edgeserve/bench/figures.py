"""What a bench says: from the ends of its requests to figures. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgeserve.answers import End


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the server: `concurrency` requests at the same time, `repetitions` times.

    A prompt has `prompt_tokens` tokens, an answer `output_tokens`.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    repetitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median, least and greatest of a figure over all repetitions."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """How fast it was.

    Attributes:
        first_token_s: From handing a request over to its first token, of each request, in seconds.
        prompt_tokens_per_s: Prompt tokens computed, of all requests at once, until the last of them had its first token.
        generation_tokens_per_s: Tokens after the first, of one request.
        total_tokens_per_s: Tokens generated, of all requests at once, in the whole time, prompts included.
    """

    first_token_s: Spread
    prompt_tokens_per_s: Spread
    generation_tokens_per_s: Spread
    total_tokens_per_s: Spread


def make_speeds(rounds: Sequence[Sequence[End]]) -> Speeds:
    """Work out the speeds.

    Args:
        rounds: For each repetition the ends of its requests, which were handed over together; at least one of each, and of
            at least two tokens.
    """
    ends = [end for one in rounds for end in one]
    return Speeds(
        first_token_s=_spread([end.first_token_s for end in ends]),
        prompt_tokens_per_s=_spread(
            [
                sum(end.prompt_tokens - end.cached_tokens for end in one)
                / max(end.first_token_s for end in one)
                for one in rounds
            ]
        ),
        generation_tokens_per_s=_spread(
            [(end.output_tokens - 1) / (end.total_s - end.first_token_s) for end in ends]
        ),
        total_tokens_per_s=_spread(
            [sum(end.output_tokens for end in one) / max(end.total_s for end in one) for one in rounds]
        ),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=statistics.median(values), least=min(values), greatest=max(values))

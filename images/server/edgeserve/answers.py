"""What a request yields, whichever interface asked: text as it grows, then its end or a fault."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgeserve.engine.protocol import FinishReason, Logprobs


class FaultKind(StrEnum):
    """Why an answer ended without a finish reason of its own."""

    ENGINE = "engine"
    SHUTTING_DOWN = "shutting_down"
    CROWDED_OUT = "crowded_out"
    FIRST_TOKEN = "first_token"  # noqa: S105 - a word of inference, not of access
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """More of the answer; where they were asked for, `logprobs` has those of the tokens that it consists of."""

    text: str
    logprobs: tuple[Logprobs, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The answer is complete; times in seconds since the request was handed over."""

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queued_s: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The answer cannot be completed; `retry_after_s` is when it may be worth another try, 0 where unknown."""

    kind: FaultKind
    retry_after_s: int = 0


Output = Text | End | Fault

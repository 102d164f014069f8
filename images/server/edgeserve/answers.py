"""What a request yields, whichever interface asked: text and calls as they grow, then its end or a fault."""

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
    """More of an answer; where they were asked for, `logprobs` has those of the tokens that it consists of.

    `choice` is the answer's number where several were asked for, from 0 on.
    """

    text: str
    logprobs: tuple[Logprobs, ...] = ()
    choice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """More of a call of a function; the first part of each has `id` and `name`, further ones more of the arguments."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    choice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The embedding of one of the texts, as `Vector` has it; they come in the texts' order."""

    values: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The answer is complete, or all of several are; times in seconds since the request was handed over.

    `reason` is why the first ended, `other_reasons` why the others did.
    """

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queued_s: float
    first_token_s: float
    total_s: float
    other_reasons: tuple[FinishReason, ...] = ()

    @property
    def reasons(self) -> tuple[FinishReason, ...]:
        """Why each answer ended."""
        return self.reason, *self.other_reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The answer cannot be completed; `retry_after_s` is when it may be worth another try, 0 where unknown."""

    kind: FaultKind
    retry_after_s: int = 0


Output = Text | ToolCall | Embedding | End | Fault

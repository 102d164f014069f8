"""What clients ask for, whichever interface they use, as checked, frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeserve.engine.protocol import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonAnswer:
    """The answer is JSON.

    Attributes:
        schema: The parsed JSON schema that it is valid against; None for any object.
        schema_field: Where the client gave it, for messages.
    """

    schema: object
    schema_field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How to answer, whatever the question.

    `output_tokens` None leaves it to the server; `output_field` is where the client said it, for messages.
    """

    model: str
    is_stream: bool
    wants_usage: bool
    output_tokens: int | None
    output_field: str
    sampling: Sampling
    stops: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """A chat to go on with; each message has the keys `role` and `content`. `answer` None leaves the answer free."""

    generation: Generation
    messages: tuple[Mapping[str, str], ...]
    answer: JsonAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCall:
    """A text to go on with; the prompt is text or token ids."""

    generation: Generation
    prompt: str | tuple[int, ...]

"""What clients ask for, whichever interface they use, as checked, frozen values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgeserve.engine.protocol import Sampling

# What OpenAI allows as the name of a function or of a schema.
FUNCTION_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


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

    `output_tokens` None leaves it to the server; `output_field` is where the client said it, for messages. `choices` is the
    number of answers.
    """

    model: str
    is_stream: bool
    wants_usage: bool
    output_tokens: int | None
    output_field: str
    sampling: Sampling
    stops: tuple[str, ...]
    choices: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """What the model may call; `field` is where the client gave the schema of the arguments, for messages."""

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the model may call.

    Attributes:
        definitions: All of it, as OpenAI has it and templates show it to the model.
        callable: What this answer may call.
        must_call: Whether the answer is a call, and no text.
        is_parallel: Whether it may be several.
        characters: Length of the definitions, written as JSON.
    """

    definitions: tuple[Mapping[str, Any], ...]
    characters: int
    callable: tuple[Function, ...]
    must_call: bool
    is_parallel: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """A chat to go on with; `answer` None leaves the answer free, and so does `tools` None.

    Each message has the keys `role` and `content`; of calls, `content` may be None, and `tool_calls` is as OpenAI has it,
    but `arguments` is a JSON object; what a call has given back has `tool_call_id` and `name`.
    """

    generation: Generation
    messages: tuple[Mapping[str, Any], ...]
    answer: JsonAnswer | None = None
    tools: Tools | None = None

    @property
    def has_calls(self) -> bool:
        """Whether any message is about calls, made or answered."""
        return any(message["role"] == "tool" or "tool_calls" in message for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingCall:
    """Texts to embed, each as text or token ids; `is_base64`: vectors are wanted in that form."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    is_base64: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCall:
    """A text to go on with; the prompt is text or token ids."""

    generation: Generation
    prompt: str | tuple[int, ...]

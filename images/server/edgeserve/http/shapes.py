"""What answers look like: OpenAI's objects for chats and for completions, whole and in parts."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, Protocol

from edgeserve.answers import End, Text
from edgeserve.calls import Generation
from edgeserve.engine.protocol import FinishReason
from edgeserve.http.logprobs import ChatLogprobs, CompletionLogprobs

DONE: Final = b"data: [DONE]\n\n"
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Shape(Protocol):
    """Turns the outputs of the scheduler into documents."""

    id: str

    def opening(self) -> bytes:
        """The parts of a stream that come before any text; may be empty."""

    def part(self, text: Text) -> bytes:
        """More text in a stream."""

    def closing(self, end: End) -> bytes:
        """The last parts of a stream, without the final mark."""

    def whole(self, texts: Sequence[Text], end: End) -> dict[str, Any]:
        """The answer in one document."""


def encode_event(document: object) -> bytes:
    """Write one server-sent event (HTML standard, 9.2.6); JSON has no line breaks of its own."""
    return b"data: " + _ENCODER.encode(document).encode() + b"\n\n"


class _Frame:
    """The event that every token without log probabilities makes, encoded once but for its text."""

    __slots__ = ("_after", "_before")

    def __init__(self, event: bytes, placeholder: str) -> None:
        """Take the event apart at the placeholder that stands for the text, once."""
        self._before, self._after = event.split(_ENCODER.encode(placeholder).encode())

    def around(self, text: str) -> bytes:
        """Write the event with a text."""
        return self._before + _ENCODER.encode(text).encode() + self._after


def usage_of(end: End) -> dict[str, Any]:
    """Render the token counts."""
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.output_tokens,
        "total_tokens": end.prompt_tokens + end.output_tokens,
        "prompt_tokens_details": {"cached_tokens": end.cached_tokens},
    }


class _Parts:
    """What both kinds share; `wants_usage` adds `usage` to every part of a stream, as OpenAI does."""

    def __init__(self, prefix: str, kind: str, *, fingerprint: str, generation: Generation) -> None:
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self._placeholder = f"the text of {self.id}"
        self._wants_usage = generation.wants_usage
        self._wants_logprobs = generation.sampling.logprobs is not None
        self._head: dict[str, Any] = {
            "id": self.id,
            "object": kind,
            "created": int(time.time()),
            "model": generation.model,
            "system_fingerprint": fingerprint,
        }

    def _event(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        document = self._head | {"choices": choices}
        if self._wants_usage:
            document["usage"] = usage
        return encode_event(document)

    def _usage_event(self, end: End) -> bytes:
        return self._event([], usage_of(end)) if self._wants_usage else b""


class ChatShape(_Parts):
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(self, *, fingerprint: str, generation: Generation) -> None:
        super().__init__("chatcmpl", "chat.completion.chunk", fingerprint=fingerprint, generation=generation)
        self._logprobs = ChatLogprobs()

    def _choice(
        self, delta: dict[str, Any], reason: FinishReason | None = None, *, texts: Sequence[Text] = ()
    ) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": self._rendered(texts), "finish_reason": reason}

    @cached_property
    def _frame(self) -> _Frame:
        return _Frame(self._event([self._choice({"content": self._placeholder})]), self._placeholder)

    def _rendered(self, texts: Sequence[Text]) -> dict[str, Any] | None:
        return self._logprobs.render(texts) if self._wants_logprobs else None

    def opening(self) -> bytes:
        """See `Shape`."""
        return self._event([self._choice({"role": "assistant", "content": ""})])

    def part(self, text: Text) -> bytes:
        """See `Shape`."""
        if self._wants_logprobs:
            return self._event([self._choice({"content": text.text}, texts=[text])])
        return self._frame.around(text.text)

    def closing(self, end: End) -> bytes:
        """See `Shape`."""
        return self._event([self._choice({}, end.reason)]) + self._usage_event(end)

    def whole(self, texts: Sequence[Text], end: End) -> dict[str, Any]:
        """See `Shape`."""
        content = "".join(text.text for text in texts)
        message = {"role": "assistant", "content": content, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._rendered(texts),
            "finish_reason": end.reason,
        }
        return self._head | {"object": "chat.completion", "choices": [choice], "usage": usage_of(end)}


class CompletionShape(_Parts):
    """`text_completion`, which is the same object whole and in parts."""

    def __init__(self, *, fingerprint: str, generation: Generation) -> None:
        super().__init__("cmpl", "text_completion", fingerprint=fingerprint, generation=generation)
        self._logprobs = CompletionLogprobs()

    def _choice(self, texts: Sequence[Text], reason: FinishReason | None = None) -> dict[str, Any]:
        logprobs = self._logprobs.render(texts) if self._wants_logprobs else None
        text = "".join(text.text for text in texts)
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    @cached_property
    def _frame(self) -> _Frame:
        return _Frame(self._event([self._choice([Text(text=self._placeholder)])]), self._placeholder)

    def opening(self) -> bytes:
        """See `Shape`."""
        return b""

    def part(self, text: Text) -> bytes:
        """See `Shape`."""
        return self._event([self._choice([text])]) if self._wants_logprobs else self._frame.around(text.text)

    def closing(self, end: End) -> bytes:
        """See `Shape`."""
        return self._event([self._choice([], end.reason)]) + self._usage_event(end)

    def whole(self, texts: Sequence[Text], end: End) -> dict[str, Any]:
        """See `Shape`."""
        return self._head | {"choices": [self._choice(texts, end.reason)], "usage": usage_of(end)}

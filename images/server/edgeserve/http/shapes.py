"""What answers look like: OpenAI's objects for chats and for completions, whole and in parts."""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from edgeserve.answers import End, Text, ToolCall
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

    def part(self, output: Text | ToolCall) -> bytes:
        """More of an answer in a stream."""

    def closing(self, end: End) -> bytes:
        """The last parts of a stream, without the final mark."""

    def whole(self, outputs: Sequence[Text | ToolCall], end: End) -> dict[str, Any]:
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
        self._frames: dict[int, _Frame] = {}
        self._numbers = range(generation.choices)
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

    def _framed(self, text: Text, make_choice: Callable[[str], dict[str, Any]]) -> bytes:
        frame = self._frames.get(text.choice)
        if frame is None:
            event = self._event([make_choice(self._placeholder)])
            frame = self._frames[text.choice] = _Frame(event, self._placeholder)
        return frame.around(text.text)

    def _each(self, outputs: Sequence[Text | ToolCall], end: End) -> list[_Whole]:
        """Sort all outputs by the answer that they belong to."""
        texts: dict[int, list[Text]] = defaultdict(list)
        calls: dict[int, list[ToolCall]] = defaultdict(list)
        for one in outputs:
            if isinstance(one, Text):
                texts[one.choice].append(one)
            else:
                calls[one.choice].append(one)
        return [
            _Whole(number=number, texts=tuple(texts[number]), calls=tuple(calls[number]), reason=reason)
            for number, reason in enumerate(end.reasons)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """All outputs of one answer."""

    number: int
    texts: tuple[Text, ...]
    calls: tuple[ToolCall, ...]
    reason: FinishReason

    @property
    def text(self) -> str:
        return "".join(text.text for text in self.texts)


class ChatShape(_Parts):
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(self, *, fingerprint: str, generation: Generation) -> None:
        super().__init__("chatcmpl", "chat.completion.chunk", fingerprint=fingerprint, generation=generation)
        self._logprobs = ChatLogprobs()

    def _choice(
        self,
        number: int,
        delta: dict[str, Any],
        reason: FinishReason | None = None,
        *,
        texts: Sequence[Text] = (),
    ) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": self._rendered(texts), "finish_reason": reason}

    def _rendered(self, texts: Sequence[Text]) -> dict[str, Any] | None:
        return self._logprobs.render(texts) if self._wants_logprobs else None

    def opening(self) -> bytes:
        """See `Shape`."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._event([self._choice(number, delta)]) for number in self._numbers)

    def part(self, output: Text | ToolCall) -> bytes:
        """See `Shape`."""
        number = output.choice
        if isinstance(output, ToolCall):
            return self._event([self._choice(number, {"tool_calls": [_call_part(output)]})])
        if self._wants_logprobs:
            return self._event([self._choice(number, {"content": output.text}, texts=[output])])
        return self._framed(output, lambda text: self._choice(number, {"content": text}))

    def closing(self, end: End) -> bytes:
        """See `Shape`."""
        ends = (self._event([self._choice(number, {}, reason)]) for number, reason in enumerate(end.reasons))
        return b"".join(ends) + self._usage_event(end)

    def whole(self, outputs: Sequence[Text | ToolCall], end: End) -> dict[str, Any]:
        """See `Shape`."""
        choices = []
        for one in self._each(outputs, end):
            message: dict[str, Any] = {"role": "assistant", "content": one.text, "refusal": None}
            if one.calls:
                message |= {"content": one.text or None, "tool_calls": _whole_calls(one.calls)}
            choices.append(
                {
                    "index": one.number,
                    "message": message,
                    "logprobs": self._rendered(one.texts),
                    "finish_reason": one.reason,
                }
            )
        return self._head | {"object": "chat.completion", "choices": choices, "usage": usage_of(end)}


def _call_part(call: ToolCall) -> dict[str, Any]:
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _whole_calls(parts: Sequence[ToolCall]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        if part.id:
            function = {"name": part.name, "arguments": ""}
            calls[part.index] = {"id": part.id, "type": "function", "function": function}
        calls[part.index]["function"]["arguments"] += part.arguments
    return list(calls.values())


class CompletionShape(_Parts):
    """`text_completion`, which is the same object whole and in parts."""

    def __init__(self, *, fingerprint: str, generation: Generation) -> None:
        super().__init__("cmpl", "text_completion", fingerprint=fingerprint, generation=generation)
        self._logprobs = tuple(CompletionLogprobs() for _ in self._numbers)

    def _choice(
        self, number: int, texts: Sequence[Text], reason: FinishReason | None = None
    ) -> dict[str, Any]:
        logprobs = self._logprobs[number].render(texts) if self._wants_logprobs else None
        text = "".join(text.text for text in texts)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def opening(self) -> bytes:
        """See `Shape`."""
        return b""

    def part(self, output: Text | ToolCall) -> bytes:
        """See `Shape`."""
        assert isinstance(output, Text)  # only chats have tools
        number = output.choice
        if self._wants_logprobs:
            return self._event([self._choice(number, [output])])
        return self._framed(output, lambda text: self._choice(number, [Text(text=text)]))

    def closing(self, end: End) -> bytes:
        """See `Shape`."""
        ends = (self._event([self._choice(number, [], reason)]) for number, reason in enumerate(end.reasons))
        return b"".join(ends) + self._usage_event(end)

    def whole(self, outputs: Sequence[Text | ToolCall], end: End) -> dict[str, Any]:
        """See `Shape`."""
        choices = [self._choice(one.number, one.texts, one.reason) for one in self._each(outputs, end)]
        return self._head | {"choices": choices, "usage": usage_of(end)}

"""Log probabilities in OpenAI's two forms: one object per token for chats, parallel lists for completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from edgeserve.answers import Text
from edgeserve.engine.protocol import Likelihood, Logprobs


class ChatLogprobs:
    """`choices[].logprobs` of chats; a token that is part of a character has its bytes and U+FFFD as text."""

    def render(self, texts: Sequence[Text]) -> dict[str, Any]:
        """Render the tokens of these texts."""
        content = [
            _described(item.drawn) | {"top_logprobs": [_described(other) for other in item.likeliest]}
            for item in _items(texts)
        ]
        return {"content": content, "refusal": None}


class CompletionLogprobs:
    """`choices[].logprobs` of completions; it counts the characters of the answer, so it is for one answer."""

    def __init__(self) -> None:
        # Characters of the answer so far; one that several tokens make counts with the last.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def render(self, texts: Sequence[Text]) -> dict[str, Any]:
        """Render the tokens of these texts, which follow those rendered before."""
        items = tuple(_items(texts))
        offsets: list[int] = []
        for item in items:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(item.drawn.piece))
        return {
            "tokens": [_text(item.drawn) for item in items],
            "token_logprobs": [item.drawn.logprob for item in items],
            # The drawn token is always among them, as OpenAI has it.
            "top_logprobs": [
                {_text(one): one.logprob for one in (*item.likeliest, item.drawn)} for item in items
            ],
            "text_offset": offsets,
        }


def _items(texts: Sequence[Text]) -> Iterator[Logprobs]:
    for text in texts:
        yield from text.logprobs


def _text(likelihood: Likelihood) -> str:
    return likelihood.piece.decode("utf-8", "replace")


def _described(likelihood: Likelihood) -> dict[str, Any]:
    return {
        "token": _text(likelihood),
        "logprob": likelihood.logprob,
        "bytes": list(likelihood.piece),
    }

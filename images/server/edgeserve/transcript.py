"""One answer as it grows: from tokens to text that can be shown, each with the log probabilities that belong to it."""

from __future__ import annotations

from collections.abc import Sequence

from edgeserve.answers import Text
from edgeserve.engine.detokenize import TextAssembler
from edgeserve.engine.protocol import Logprobs, Token


class Transcript:
    """Assembles the text of one answer, of which nothing from a stop string on is part."""

    __slots__ = ("_assembler", "_pending", "_seen_bytes", "_shown_bytes")

    def __init__(self, stops: Sequence[str]) -> None:
        self._assembler = TextAssembler(stops)
        # Tokens whose text is held back, and where each starts in the bytes of the answer.
        self._pending: list[tuple[int, Logprobs]] = []
        self._seen_bytes = self._shown_bytes = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._assembler.is_stopped

    def feed(self, token: Token) -> Text | None:
        """Take the next token; returns the text that is now certain, if any."""
        if token.logprobs is not None:
            self._pending.append((self._seen_bytes, token.logprobs))
            self._seen_bytes += len(token.piece)
        text = self._assembler.feed(token.piece)
        return self._shown(text) if text else None

    def finish(self) -> Text | None:
        """End the answer; returns what was held back, if anything."""
        rest = self._shown(self._assembler.finish())
        return rest if rest.text or rest.logprobs else None

    def _shown(self, text: str) -> Text:
        if not self._pending:
            return Text(text=text)
        self._shown_bytes += len(text.encode("utf-8", "replace"))
        pending, self._pending = self._pending, []
        # The tokens of a stop string are not part of the answer, except the one that it begins in.
        return Text(
            text=text,
            logprobs=tuple(
                logprobs
                for start, logprobs in pending
                if start < self._shown_bytes or not self._assembler.is_stopped
            ),
        )

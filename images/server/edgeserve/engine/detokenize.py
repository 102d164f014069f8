"""From pieces of tokens to text that can be shown: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextAssembler:
    """Collects the pieces of one answer.

    A piece may end inside a character or inside what could become a stop string; that tail is held back until the
    next pieces decide. Bytes that are no UTF-8 become U+FFFD.
    """

    __slots__ = ("_decoder", "_held", "_stops", "is_stopped")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def feed(self, piece: bytes) -> str:
        """Take the next piece; returns the text that is now certain. Once `is_stopped`, nothing follows."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """End the answer; returns what was held back."""
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text if self.is_stopped else text + rest

    def _release(self, text: str) -> str:
        if self.is_stopped or not text:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        ends = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if ends:
            self.is_stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max(overlap(text, stop) for stop in self._stops)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins, shorter than `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0

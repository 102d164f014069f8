"""Cuts a text that is too long for one prompt into overlapping windows, at the ends of lines or words where it can."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from edgeserve.calls import ChatCall, CompletionCall

SMALLEST_WINDOW_TOKENS: Final = 32
_WORD: Final = re.compile(r"\S*\s+|\S+")
# One by one, short words would seem to have more tokens than they have together.
_GROUP_CHARACTERS: Final = 48


class TooManyWindowsError(Exception):
    """The text takes more windows than allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """The tokens of the prompt of each window; one prompt where the whole fits. `overlap`: windows share text."""

    prompts: tuple[tuple[int, ...], ...]
    overlap: bool


def text_to_split(call: ChatCall | CompletionCall) -> str | None:
    """Return the part of a call that may be cut: the last message of the user, or a prompt in text.

    Not where functions are called: each window's answer would call them anew.
    """
    if isinstance(call, ChatCall):
        if call.tools is not None or call.has_calls:
            return None
        place = _last_of_user(call)
        return None if place is None else str(call.messages[place]["content"])
    return call.prompt if isinstance(call.prompt, str) else None


def with_text(call: ChatCall | CompletionCall, text: str) -> ChatCall | CompletionCall:
    """Put another text in the place of the one that may be cut."""
    if isinstance(call, CompletionCall):
        return dataclasses.replace(call, prompt=text)
    place = _last_of_user(call)
    assert place is not None
    message = {**call.messages[place], "content": text}
    return dataclasses.replace(call, messages=(*call.messages[:place], message, *call.messages[place + 1 :]))


def _last_of_user(call: ChatCall) -> int | None:
    places = (place for place, message in enumerate(call.messages) if message["role"] == "user")
    return max(places, default=None)


def split_text(
    text: str, *, count_tokens: Callable[[str], int], window_tokens: int, stride_tokens: int, most: int
) -> tuple[str, ...]:
    """Cut a text into windows that hold all of it.

    Pieces are counted one by one, so a window is as long as wanted to within an eighth, and rather shorter.

    Args:
        text: At least one character.
        count_tokens: Counts the tokens of a text.
        window_tokens: Longest window, at least `SMALLEST_WINDOW_TOKENS`.
        stride_tokens: How much later each next window starts, at most as long as a window; what is left of the window
            overlaps.
        most: Most windows.

    Raises:
        TooManyWindowsError: These are not enough.
    """
    pieces, sizes = zip(*_pieces(text, count_tokens, window_tokens), strict=True)
    windows: list[str] = []
    start = 0
    while True:
        if len(windows) == most:
            raise TooManyWindowsError
        end = _reach(sizes, start, window_tokens)
        windows.append("".join(pieces[start:end]))
        if end == len(pieces):
            return tuple(windows)
        start = min(end, _reach(sizes, start, stride_tokens))
        while _reach(sizes, start, window_tokens) <= end:
            start += 1  # it would hold nothing that the one before did not


def _reach(sizes: tuple[int, ...], start: int, tokens: int) -> int:
    """Return the end of the pieces from `start` on that hold at most so many tokens together, at least one piece."""
    end, left = start + 1, tokens - sizes[start]
    while end < len(sizes) and sizes[end] <= left:
        left -= sizes[end]
        end += 1
    return end


def _pieces(text: str, count_tokens: Callable[[str], int], window_tokens: int) -> Iterator[tuple[str, int]]:
    """Cut a text into lines, or where they are long into groups of words, each with its tokens."""
    for line in text.splitlines(keepends=True):
        size = count_tokens(line)
        if size <= window_tokens // 8:
            yield line, size
        else:
            yield from ((words, count_tokens(words)) for words in _words(line, window_tokens))


def _words(line: str, window_tokens: int) -> Iterator[str]:
    # No token is shorter than a byte and no character longer than four, so that many always fit a window.
    longest = window_tokens // 4 - 1
    group = ""
    for match in _WORD.finditer(line):
        word = match[0]
        if group and len(group) + len(word) > min(longest, _GROUP_CHARACTERS):
            yield group
            group = ""
        group += word
        while len(group) > longest:
            yield group[:longest]
            group = group[longest:]
    if group:
        yield group

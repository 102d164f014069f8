"""Joins the answers about the windows of one text to one answer, as it grows."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from edgeserve.answers import End, Output, Text
from edgeserve.engine.protocol import FinishReason, Request


class Stitcher:
    """Puts each answer on a line of its own.

    Where windows overlap, a list of findings starts with those that ended the list before: the lines with which an
    answer begins and the one before ended are left out.
    """

    def __init__(self, *, overlap: bool) -> None:
        self._overlap = overlap
        self._before: tuple[str, ...] = ()
        self._answer = ""
        # What has come of this answer and may still turn out to be a repetition; None once that is decided.
        self._held: str | None = None
        self._is_fresh = False
        self._tail = ""

    def feed(self, text: str) -> str:
        """Take more of the present answer; return what is now certain to be part of the whole."""
        self._answer += text
        if self._held is None:
            return self._pass(text)
        self._held += text
        *lines, last = self._held.lstrip("\n").split("\n")
        if not (lines or last) or _may_go_on(self._before, _bare(lines), last.rstrip()):
            return ""
        return self._decide(*lines, last)

    def end_answer(self) -> str:
        """End the present answer; return what was held back of it."""
        text = "" if self._held is None else self._decide(*self._held.strip("\n").split("\n"))
        self._before = _bare(self._answer.strip().split("\n")) if self._overlap else ()
        self._answer, self._held, self._is_fresh = "", "", True
        return text

    def _decide(self, *lines: str) -> str:
        self._held = None
        bare = _bare(lines)
        most = min(len(bare), len(self._before))
        repeated = next((count for count in range(most, 0, -1) if bare[:count] == self._before[-count:]), 0)
        return self._pass("\n".join(lines[repeated:]))

    def _pass(self, text: str) -> str:
        if not text:
            return ""
        if self._is_fresh and self._tail not in {"", "\n"}:
            text = "\n" + text
        self._is_fresh, self._tail = False, text[-1]
        return text


def _bare(lines: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line.rstrip() for line in lines)


def _may_go_on(before: tuple[str, ...], lines: tuple[str, ...], last: str) -> bool:
    """Whether the lines, the last of them unfinished, may be the beginning of a repetition."""
    count = len(lines)
    return any(
        before[start : start + count] == lines and before[start + count].startswith(last)
        for start in range(len(before) - count)
    )


async def answer_windows(
    requests: tuple[Request, ...],
    generate: Callable[[Request, int], AsyncGenerator[Output, None]],
    *,
    output_tokens: int,
    overlap: bool,
) -> AsyncGenerator[Output, None]:
    """Answer one window after the other; the last output is the `End` of all together or a `Fault`.

    Args:
        requests: One for each window, at least one; `output_tokens` of each is the most that its context has room for.
        generate: Answers a request; told its number, from 0 on.
        output_tokens: Most tokens of the whole answer, at least one for each window: they are shared out evenly, and
            what one window leaves goes to those after it.
        overlap: Whether the windows overlap.
    """
    stitcher = Stitcher(overlap=overlap)
    ends: list[End] = []
    left = output_tokens
    for number, request in enumerate(requests):
        share = min(request.output_tokens, left // (len(requests) - number))
        async with aclosing(generate(dataclasses.replace(request, output_tokens=share), number)) as outputs:
            async for output in outputs:
                if isinstance(output, Text):
                    text = stitcher.feed(output.text)
                elif isinstance(output, End):
                    ends.append(output)
                    text = stitcher.end_answer()
                else:
                    yield output
                    return
                if text:
                    yield Text(text=text)
        left -= ends[-1].output_tokens
    yield _sum(ends)


def _sum(ends: list[End]) -> End:
    is_cut = any(end.reason is FinishReason.LENGTH for end in ends)
    return End(
        reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
        prompt_tokens=sum(end.prompt_tokens for end in ends),
        cached_tokens=sum(end.cached_tokens for end in ends),
        output_tokens=sum(end.output_tokens for end in ends),
        queued_s=sum(end.queued_s for end in ends),
        first_token_s=ends[0].first_token_s,
        total_s=sum(end.total_s for end in ends),
    )

"""Windows hold the whole text and no more than they may; the answers about them are joined without repetitions."""

import asyncio
import itertools
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.answers import End, Fault, FaultKind, Output, Text
from edgeserve.calls import ChatCall, CompletionCall, Generation
from edgeserve.engine.protocol import FinishReason, Request, Sampling
from edgeserve.stitching import Stitcher, answer_windows
from edgeserve.windows import TooManyWindowsError, split_text, text_to_split, with_text


def _bytes(text: str) -> int:
    """The worst that a vocabulary does: a token for every byte and one for the beginning."""
    return len(text.encode()) + 1


@given(
    ends=st.lists(st.sampled_from(["", "", "€", " ", "\n"]), min_size=1, max_size=700),
    window=st.integers(32, 400),
    share=st.integers(1, 100),
)
def test_windows_hold_the_whole_text(ends: list[str], window: int, share: int) -> None:
    # No character but the separators stands there twice, so a window's place is certain.
    text = "".join(chr(0x4E00 + place) + end for place, end in enumerate(ends))
    stride = max(1, window * share // 100)
    windows = split_text(text, count_tokens=_bytes, window_tokens=window, stride_tokens=stride, most=10**6)
    places = [(text.index(part), text.index(part) + len(part)) for part in windows]
    assert places[0][0] == 0
    assert places[-1][1] == len(text)
    for (start, end), (later_start, later_end) in itertools.pairwise(places):
        assert start < later_start <= end < later_end
    assert max(map(_bytes, windows)) <= window


def test_cuts_are_at_the_ends_of_lines_and_words() -> None:
    text = (
        "first line of it\nsecond line of it\nthird line with many more words than fit into a single window"
    )
    windows = split_text(text, count_tokens=len, window_tokens=40, stride_tokens=40, most=9)
    assert "".join(windows) == text
    assert windows[0] == "first line of it\nsecond line of it\n"
    assert all(window.endswith((" ", "\n")) for window in windows[:-1])


def test_windows_overlap_by_what_the_stride_leaves() -> None:
    text = "".join(f"{number:03}\n" for number in range(200))
    windows = split_text(text, count_tokens=len, window_tokens=80, stride_tokens=60, most=99)
    for one, other in itertools.pairwise(windows):
        assert one[-20:] == other[:20]


def test_too_many_windows() -> None:
    given = {"count_tokens": len, "window_tokens": 40, "stride_tokens": 40}
    assert len(split_text("abc\n" * 100, **given, most=10)) == 10  # type: ignore[arg-type]
    with pytest.raises(TooManyWindowsError):
        split_text("abc\n" * 100, **given, most=9)  # type: ignore[arg-type]


_GENERATION = Generation(
    model="m",
    is_stream=False,
    wants_usage=False,
    output_tokens=None,
    output_field="max_tokens",
    sampling=Sampling(),
    stops=(),
)


def test_only_the_last_message_of_the_user_is_cut() -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = tuple({"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles))
    call = ChatCall(generation=_GENERATION, messages=messages)
    assert text_to_split(call) == "user 3"
    changed = with_text(call, "new")
    assert isinstance(changed, ChatCall)
    assert [message["content"] for message in changed.messages] == [
        "system 0", "user 1", "assistant 2", "new", "assistant 4",
    ]  # fmt: skip
    assert text_to_split(ChatCall(generation=_GENERATION, messages=messages[:1])) is None
    assert text_to_split(CompletionCall(generation=_GENERATION, prompt="p")) == "p"
    assert text_to_split(CompletionCall(generation=_GENERATION, prompt=(1, 2))) is None


def _stitched(*answers: str, overlap: bool = True, parts: int = 1) -> str:
    stitcher = Stitcher(overlap=overlap)
    whole = ""
    for answer in answers:
        for start in range(0, len(answer), parts):
            whole += stitcher.feed(answer[start : start + parts])
        whole += stitcher.end_answer()
    return whole


@pytest.mark.parametrize("parts", [1, 3, 1000])
@pytest.mark.parametrize(
    ("answers", "whole"),
    [
        (("a\nb\nc", "b\nc\nd"), "a\nb\nc\nd"),
        (("a\nb\nc", "c\nb\nd"), "a\nb\nc\nb\nd"),
        (("a\nb", "a\nb"), "a\nb"),
        (("a\nb\n", "b \nc", "c"), "a\nb\nc"),
        (("a\n1", "12\n3"), "a\n1\n12\n3"),
        (("a", "", "a"), "a\na"),
        (("none", "none", "none"), "none"),
        (("x\ny\nx\ny", "x\ny\nz"), "x\ny\nx\ny\nz"),
        (("a\nb", "\n\nb\nc"), "a\nb\nc"),
        (("", "a"), "a"),
        (("  a", "b"), "  a\nb"),
    ],
)
def test_what_an_answer_repeats_is_left_out(answers: tuple[str, ...], whole: str, parts: int) -> None:
    assert _stitched(*answers, parts=parts) == whole


def test_without_overlap_nothing_is_left_out() -> None:
    assert _stitched("none", "none", overlap=False, parts=2) == "none\nnone"


def test_what_is_certain_is_not_held_back() -> None:
    stitcher = Stitcher(overlap=True)
    assert stitcher.feed("one\ntwo") == "one\ntwo"
    stitcher.end_answer()
    assert stitcher.feed("tw") == ""
    assert stitcher.feed("o\n") == ""
    assert stitcher.feed("thr") == "\nthr"
    assert stitcher.feed("ee") == "ee"


@given(st.lists(st.text(alphabet="ab\n", max_size=12), max_size=5), st.integers(1, 5), st.booleans())
def test_no_line_that_is_not_repeated_is_lost(answers: list[str], parts: int, overlap: bool) -> None:
    whole = _stitched(*answers, parts=parts, overlap=overlap)
    assert whole == _stitched(*answers, parts=1000, overlap=overlap)
    lines = {line for answer in answers for line in answer.split("\n") if line}
    assert {line for line in whole.split("\n") if line} == lines


def _run(
    requests: tuple[Request, ...], output_tokens: int, answers: tuple[tuple[Output, ...], ...]
) -> tuple[list[Output], list[int]]:
    shares: list[int] = []

    async def generate(request: Request, number: int) -> AsyncGenerator[Output, None]:
        shares.append(request.output_tokens)
        for output in answers[number]:
            yield output

    async def collect() -> list[Output]:
        outputs = answer_windows(requests, generate, output_tokens=output_tokens, overlap=True)
        return [output async for output in outputs]

    return asyncio.run(collect()), shares


def _request(number: int) -> Request:
    return Request(id=str(number), prompt=(1, 2), output_tokens=50, sampling=Sampling())


def _end(output_tokens: int, reason: FinishReason = FinishReason.STOP) -> End:
    return End(
        reason=reason,
        prompt_tokens=10,
        cached_tokens=4,
        output_tokens=output_tokens,
        queued_s=0.5,
        first_token_s=1.0,
        total_s=2.0,
    )


def test_the_output_is_shared_out_and_summed_up() -> None:
    requests = tuple(_request(number) for number in range(3))
    answers = (
        (Text(text="a"), _end(2)),
        (Text(text="b"), _end(14, FinishReason.LENGTH)),
        (Text(text="c"), _end(3)),
    )
    outputs, shares = _run(requests, 30, answers)
    assert shares == [10, 14, 14]
    assert outputs[:-1] == [Text(text="a"), Text(text="\nb"), Text(text="\nc")]
    assert outputs[-1] == End(
        reason=FinishReason.LENGTH,
        prompt_tokens=30,
        cached_tokens=12,
        output_tokens=19,
        queued_s=1.5,
        first_token_s=1.0,
        total_s=6.0,
    )


def test_no_window_gets_more_than_its_context_has_room_for() -> None:
    outputs, shares = _run((_request(0), _request(1)), 200, ((_end(1),), (_end(1),)))
    assert shares == [50, 50]
    assert isinstance(outputs[-1], End)


def test_a_fault_ends_it() -> None:
    fault = Fault(kind=FaultKind.DEADLINE)
    outputs, shares = _run((_request(0), _request(1)), 20, ((Text(text="a"), fault), ()))
    assert outputs == [Text(text="a"), fault]
    assert shares == [10]

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.engine.detokenize import TextAssembler


def _feed(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, bool]:
    assembler = TextAssembler(stops)
    text = ""
    for piece in pieces:
        text += assembler.feed(piece)
        if assembler.is_stopped:
            break
    return text + assembler.finish(), assembler.is_stopped


def test_holds_partial_characters_back() -> None:
    assembler = TextAssembler()
    euro = "€".encode()
    assert [assembler.feed(euro[:1]), assembler.feed(euro[1:2]), assembler.feed(euro[2:])] == ["", "", "€"]


def test_marks_characters_that_never_complete() -> None:
    assert _feed([b"ab", b"\xf0\x9f"]) == ("ab\ufffd", False)


def test_replaces_bytes_that_are_no_text() -> None:
    assert _feed([b"a\xff", b"b"])[0] == "a\ufffdb"


def test_stops_across_pieces() -> None:
    assert _feed([b"one E", b"N", b"D two"], ("END",)) == ("one ", True)


def test_releases_what_turned_out_to_be_no_stop() -> None:
    assembler = TextAssembler(("END",))
    assert assembler.feed(b"E") == ""
    assert assembler.feed(b"N") == ""
    assert assembler.feed(b"E") == "EN"
    assert assembler.finish() == "E"


def test_takes_the_earliest_of_several_stops() -> None:
    assert _feed([b"abcdef"], ("ef", "bc")) == ("a", True)


def test_gives_nothing_after_a_stop() -> None:
    assembler = TextAssembler(("x",))
    assembler.feed(b"ax")
    assert (assembler.feed(b"more"), assembler.finish()) == ("", "")


def test_stops_inside_a_character_that_two_pieces_complete() -> None:
    assert _feed([b"a\xe2\x82", b"\xacb"], ("€",)) == ("a", True)


@given(
    st.binary(max_size=60),
    st.lists(st.integers(0, 60), max_size=8),
    st.lists(st.text(min_size=1, max_size=4), max_size=3),
)
def test_agrees_with_the_whole_text_however_it_is_cut(data: bytes, cuts: list[int], stops: list[str]) -> None:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    whole = data.decode("utf-8", "replace")
    found = [whole.find(stop) for stop in stops if stop in whole]
    expected = whole[: min(found)] if found else whole
    assert _feed(pieces, tuple(stops)) == (expected, bool(found))


@pytest.mark.parametrize("text", ["aab", "aaab", "aaaab"])
def test_finds_stops_that_overlap_themselves(text: str) -> None:
    assert _feed([character.encode() for character in text], ("aab",)) == (text[:-3], True)

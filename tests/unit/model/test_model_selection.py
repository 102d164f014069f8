"""Which file of several is taken."""

import pytest

from edgebuild.errors import ModelError
from edgebuild.model.selection import choose_files, find_candidates, quantization_in

REPOSITORY = (
    "README.md", "config.json", "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "tiny-f16.gguf", "mmproj-tiny-f16.gguf",
    "tiny.imatrix.gguf",
)  # fmt: skip


def choose(files: tuple[str, ...], *wanted: str) -> str:
    (found,) = choose_all(files, *wanted)
    return found


def choose_all(files: tuple[str, ...], *wanted: str) -> tuple[str, ...]:
    return choose_files(
        files, wanted=wanted, place="hf://acme/tiny", hint="name the file: hf://acme/tiny/{file}"
    )


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tiny-Q4_K_M.gguf", "Q4_K_M"),
        ("tiny.q4_k_m.gguf", "Q4_K_M"),
        ("Q8_0/tiny.gguf", "Q8_0"),
        ("tiny-fp16.gguf", "F16"),
        ("tiny-BF16.gguf", "BF16"),
        ("tiny_f32.gguf", "F32"),
        ("tiny-F32.gguf", "F32"),
        ("tiny-IQ2_XXS-00001-of-00002.gguf", "IQ2_XXS"),
        ("q4_0-trained-tiny-Q5_K_S.gguf", "Q5_K_S"),
        ("tiny.gguf", ""),
        ("tiny-Q4_K_XL.gguf", ""),
    ],
)
def test_type_in_a_name(file: str, expected: str) -> None:
    assert quantization_in(file) == expected


def test_candidates_are_language_models_alone() -> None:
    assert [candidate.file for candidate in find_candidates(REPOSITORY)] == [
        "tiny-Q4_K_M.gguf",
        "tiny-Q8_0.gguf",
        "tiny-f16.gguf",
    ]


def test_the_only_one_is_taken_whatever_it_is() -> None:
    assert choose(("a.gguf", "mmproj-a.gguf", "README.md"), "Q4_K_M") == "a.gguf"


def test_the_type_that_all_devices_want_is_taken() -> None:
    assert choose(REPOSITORY, "Q8_0") == "tiny-Q8_0.gguf"


def test_else_the_one_in_16_bit() -> None:
    assert choose(REPOSITORY, "Q6_K") == "tiny-f16.gguf"
    assert choose(REPOSITORY, "Q8_0", "Q4_K_M") == "tiny-f16.gguf"


@pytest.mark.parametrize(
    "files",
    [
        ("a-Q8_0.gguf", "b-Q8_0.gguf"),
        ("a-Q8_0.gguf", "a-Q6_K.gguf"),
        ("a-f16.gguf", "a-bf16.gguf"),
        tuple(f"a{number}-Q8_0.gguf" for number in range(30)),
    ],
)
def test_no_clear_choice_is_an_error_that_lists_them(files: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=f"holds {len(files)} models") as caught:
        choose(files, "Q4_K_M" if "Q8_0" not in files[1] else "Q8_0")
    assert min(files) in caught.value.message
    assert caught.value.hint == f"name the file: hf://acme/tiny/{min(files)}"
    assert len(caught.value.message) < 600


PARTS = tuple(f"q/a-Q4_K_M-0000{number}-of-00003.gguf" for number in (1, 2, 3))


def test_a_model_in_several_files_is_one_and_all_are_taken_in_order() -> None:
    files = ("a-Q8_0.gguf", *reversed(PARTS), "b-Q4_K_M-00002-of-00003.gguf.part", "README.md")
    assert choose(files, "Q8_0") == "a-Q8_0.gguf"
    assert choose_all(files, "Q4_K_M") == PARTS
    assert [candidate.file for candidate in find_candidates(files)] == ["a-Q8_0.gguf", PARTS[0]]
    assert choose_all(("a-00001-of-00001.gguf",), "Q8_0") == ("a-00001-of-00001.gguf",)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (PARTS[:2], "lacks q/a-Q4_K_M-00003-of-00003.gguf of a model in 3 files"),
        (PARTS[2:], "lacks q/a-Q4_K_M-00001-of-00003.gguf and 1 more of"),
        (("a-00001-of-99999.gguf",), "is a model in 99999 files; an image takes no more than 100"),
    ],
)
def test_files_of_a_model_that_are_missing_are_named(files: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        choose_all(files, "Q4_K_M")
    assert caught.value.hint


def test_models_cut_differently_are_two() -> None:
    with pytest.raises(ModelError, match="holds 2 models"):
        choose_all((*PARTS, *(f"q/a-Q4_K_M-0000{number}-of-00002.gguf" for number in (1, 2))), "Q4_K_M")


def test_nothing_to_choose_from() -> None:
    assert choose_files(("README.md",), wanted=("Q8_0",), place="x", hint="") == ()

"""The card and the history of checkpoints that were made smaller."""

from pathlib import Path

import pytest

from edgebuild.errors import ModelError
from edgebuild.model.smaller.history import HISTORY_FILE, Card, Step, read_card, write_card

STEP = Step(kind="prune", document={"dropped": [1]}, text="Words.")


def test_card_and_history_go_on(tiny: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    write_card(first, read_card(tiny), STEP, name="first", sources="**tiny**")
    card = read_card(first)
    assert card.licence == "apache-2.0"
    assert card.steps == (STEP,)
    again = Step(kind="distill", document={}, text="More words.")
    write_card(second, card, again, name="second", sources="**first**")
    assert read_card(second).steps == (STEP, again)
    text = (second / "README.md").read_text()
    assert text.startswith("---\nmodel_name: second\nlicense: apache-2.0\n---\n# second\n")
    assert text.index("## 1. Layers left out") < text.index("## 2. Distilled")


def test_a_model_that_says_nothing(tmp_path: Path) -> None:
    assert read_card(tmp_path) == Card(facts={}, steps=())
    write_card(tmp_path, read_card(tmp_path), STEP, name="a", sources="**b**")
    assert "states none; find out before you pass this one on" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("text", ["words", "---\n[", "---\n- a\n---\n", "---\nopen: true\n"])
def test_front_matter_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert "license" not in read_card(tmp_path).facts


@pytest.mark.parametrize(
    "data",
    [
        b"---\nlicense: [\n---\nwords",
        b"---\nlicense: mit\nlanguage: \xe4\n---\nwords",
        b"---\nreleased: 2024-13-45\nlicense: mit\n---\n",
        b"\xef\xbb\xbf---\r\n\tlicense: mit\r\n---\r\n",
        b"---\n" + b"[" * 100_000 + b"\n---\n",
    ],
)
def test_front_matter_that_cannot_be_read(tmp_path: Path, data: bytes) -> None:
    """Else the new model's card would say that there is no licence."""
    (tmp_path / "README.md").write_bytes(data)
    with pytest.raises(ModelError, match=r"README\.md: its front matter cannot be read: ") as caught:
        read_card(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"---\nlicense: mit\n---\nGr\xfc\xdfe",
        b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\nwords\r\n",
        b"---\nlicense: mit\n---",
        b"---\nmodel_name: a---b\nlicense: mit\n---\nwords\n---\nlicense: apache-2.0\n---\n",
    ],
)
def test_front_matter_however_it_is_saved(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "README.md").write_bytes(data)
    assert read_card(tmp_path).licence == "mit"


def test_a_card_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    with pytest.raises(ModelError, match=r"README\.md: cannot be read: Is a directory"):
        read_card(tmp_path)


def test_a_licence_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: llama3\n---\nwords")
    assert read_card(tmp_path).licence == "llama3"


@pytest.mark.parametrize("text", ["{}", '{"format": 1, "steps": [{}]}', '{"format": 2, "steps": []}', "{"])
def test_a_damaged_history(tmp_path: Path, text: str) -> None:
    (tmp_path / HISTORY_FILE).write_text(text)
    with pytest.raises(ModelError, match=HISTORY_FILE):
        read_card(tmp_path)

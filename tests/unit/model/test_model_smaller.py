"""What `edgebuild model prune` and `distill` refuse before any weights are loaded, and the folders that they write."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from edgebuild.errors import EdgebuildError, ModelError, ToolError, UsageError
from edgebuild.host import Host, make_host
from edgebuild.model.smaller.draft import drafted, verify_output
from edgebuild.model.smaller.folders import read_checkpoint_folder
from edgebuild.model.smaller.history import HISTORY_FILE, Card, Step, read_card, write_card
from edgebuild.model.smaller.prune import PruneRequest, layers_to_drop, prune_model
from edgebuild.model.smaller.text import check_text
from edgebuild.progress import SilentProgress
from tests.support.checkpoints import change_json
from tests.support.tiny_llama import write_tiny_llama

# Replaces a folder and is killed after so many renames, before whatever comes next.
KILLED = """
import os, signal, sys
from pathlib import Path
from edgebuild.model.smaller.draft import drafted

output, renames, state = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
done = []

def watch(event, arguments):
    if event in ("os.rename", "shutil.rmtree"):
        if len(done) == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(event)

with drafted(output) as draft:
    (draft.folder / "config.json").write_text("new")
    if state:
        (draft.state / "kept").write_text(state)
    sys.addaudithook(watch)
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny", layers=3)


class TestCheckpoint:
    def test_a_good_one(self, tmp_path: Path) -> None:
        found = read_checkpoint_folder(write_tiny_llama(tmp_path / "sharded", layers=7, shards=3))
        assert found.layers == 7
        assert found.weights == tuple(f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3))

    def test_no_folder(self, tiny: Path) -> None:
        with pytest.raises(ModelError, match="no such folder"):
            read_checkpoint_folder(tiny / "gone")
        with pytest.raises(ModelError, match="is no folder"):
            read_checkpoint_folder(tiny / "config.json")

    def test_a_gguf_file_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(b"GGUF")
        with pytest.raises(ModelError, match="holds a GGUF file, and this works on checkpoints"):
            read_checkpoint_folder(tmp_path)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel, which edgebuild cannot"),
            ({"architectures": None}, "architecture unknown"),
            ({"quantization_config": {"quant_method": "awq"}}, "quantised already"),
            ({"num_hidden_layers": "six"}, "num_hidden_layers is 'six'"),
            ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ],
    )
    def test_a_configuration_of_another_kind(self, tiny: Path, entries: dict[str, Any], message: str) -> None:
        change_json(tiny / "config.json", entries)
        with pytest.raises(ModelError, match=message) as caught:
            read_checkpoint_folder(tiny)
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("name", "message"), [("quantize_config.json", "by GPTQ"), ("quant_config.json", "by AWQ")]
    )
    def test_weights_that_only_a_file_beside_them_calls_quantised(
        self, tiny: Path, name: str, message: str
    ) -> None:
        (tiny / name).write_text('{"bits": 4}')
        with pytest.raises(ModelError, match=f"quantised already, {message}") as caught:
            read_checkpoint_folder(tiny)
        assert "16-bit checkpoint" in caught.value.hint

    @pytest.mark.parametrize(
        "entries",
        [
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            {"quantization_config": {}},
            {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
        ],
    )
    def test_what_the_converter_can_widen_is_still_quantised(
        self, tiny: Path, entries: dict[str, Any]
    ) -> None:
        change_json(tiny / "config.json", entries)
        with pytest.raises(ModelError, match="quantised already"):
            read_checkpoint_folder(tiny)

    @pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin"])
    def test_an_index_that_names_other_files(self, tmp_path: Path, name: str) -> None:
        folder = write_tiny_llama(tmp_path / "sharded", shards=2)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ModelError, match="names no safetensors files"):
            read_checkpoint_folder(folder)

    @pytest.mark.parametrize("text", ["{", "[]", "\xff", "[" * 100_000])
    def test_a_damaged_configuration(self, tiny: Path, text: str) -> None:
        (tiny / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ModelError, match=r"config\.json"):
            read_checkpoint_folder(tiny)

    def test_files_that_are_missing(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path / "sharded", shards=3)
        (folder / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(
            ModelError, match=r"names model-00002-of-00003\.safetensors, which is not there .1 of 3 files"
        ):
            read_checkpoint_folder(folder)
        (folder / "model.safetensors.index.json").unlink()
        with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors is not there"):
            read_checkpoint_folder(folder)


class TestText:
    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("a.txt", b"", "is empty"),
            ("a.txt", b" \n\n", "is empty"),
            ("a.txt", b"good\nb\xe4d\n", "a.txt:2: not UTF-8 .byte 0xe4."),
            ("a.jsonl", b'{"text": "good"}\nbad\n', "a.jsonl:2: no line of the form"),
            ("a.jsonl", b'{"prompt": "alone"}\n', "a.jsonl:1: no line of the form"),
            ("a.jsonl", b'{"prompt": 1, "expected": "b"}\n', "a.jsonl:1: no line of the form"),
            ("a.jsonl", b'{"text": ""}\n', "a.jsonl:1"),
            ("a.jsonl", b'["text"]\n', "a.jsonl:1"),
            ("a.jsonl", b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n', "a.jsonl:2"),
            ("a.jsonl", b"[" * 100_000, "a.jsonl:1"),
            ("a.jsonl", b'{"messages": [{"role": "user", "content": "a"}]}\n', "a.jsonl:1"),
            (
                "a.jsonl",
                b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]}\n',
                "a.jsonl:1",
            ),
        ],
    )
    def test_refused(self, tmp_path: Path, name: str, data: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=message):
            check_text(tmp_path / name)

    def test_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"gone\.txt: cannot be read"):
            check_text(tmp_path / "gone.txt")
        with pytest.raises(UsageError, match="cannot be read"):
            check_text(tmp_path)

    def test_forms(self, tmp_path: Path) -> None:
        lines = (
            {"text": "a"},
            {"prompt": "a", "expected": "b"},
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        )
        path = tmp_path / "a.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
        assert check_text(path).is_lines
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(line) for line in lines).encode())
        assert check_text(path).is_lines
        plain = tmp_path / "a.txt"
        plain.write_bytes(b"\xef\xbb\xbfwords")
        assert not check_text(plain).is_lines


@pytest.mark.parametrize(("drop", "keep", "wanted"), [(1, None, 1), (2, None, 2), (None, 1, 2), (None, 2, 1)])
def test_layers_that_go(tiny: Path, drop: int | None, keep: int | None, wanted: int) -> None:
    assert layers_to_drop(read_checkpoint_folder(tiny), drop=drop, keep=keep) == wanted


@pytest.mark.parametrize(
    ("drop", "keep", "message"),
    [
        (3, None, "has 3 layers, and 3 cannot be left out"),
        (9, None, "has 3 layers, and 9 cannot be left out"),
        (None, 3, "has 3 layers, so that --keep 3 leaves none out"),
        (None, 9, "leaves none out"),
        (None, None, "either --layers or --keep"),
        (1, 1, "either --layers or --keep"),
    ],
)
def test_layers_that_cannot_go(tiny: Path, drop: int | None, keep: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        layers_to_drop(read_checkpoint_folder(tiny), drop=drop, keep=keep)


class TestOutput:
    def test_what_is_there_is_refused(self, tiny: Path, tmp_path: Path) -> None:
        verify_output(tmp_path / "new", replace=False, sources=(tiny,))
        other = write_tiny_llama(tmp_path / "other")
        with pytest.raises(UsageError, match="is there already"):
            verify_output(other, replace=False, sources=(tiny,))
        verify_output(other, replace=True, sources=(tiny,))

    def test_what_is_no_checkpoint_is_never_replaced(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "dear").write_text("words")
        (tmp_path / "file").write_text("words")
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        for name in ("letters", "file", "link"):
            with pytest.raises(UsageError, match="is no checkpoint"):
                verify_output(tmp_path / name, replace=True, sources=(tiny,))

    def test_what_is_read_is_never_replaced(self, tiny: Path, tmp_path: Path) -> None:
        for output in (tiny, tmp_path):
            with pytest.raises(UsageError, match="is or holds the model that is read"):
                verify_output(output, replace=True, sources=(tiny,))

    def test_a_draft_becomes_the_output_at_the_end(self, tmp_path: Path) -> None:
        output = tmp_path / "a" / "b"
        with drafted(output) as draft:
            (draft.folder / "file").write_text("new")
            assert not output.exists()
        assert [path.name for path in output.iterdir()] == ["file"]
        with drafted(output) as draft:
            (draft.folder / "other").write_text("newer")
        assert [path.name for path in output.iterdir()] == ["other"]
        assert [path.name for path in output.parent.iterdir()] == ["b"]

    def test_a_failure_leaves_nothing_but_an_unfinished_training(self, tmp_path: Path) -> None:
        def fail(output: Path, *, with_state: bool) -> NoReturn:
            with drafted(output) as draft:
                (draft.folder / "file").write_text("half")
                if with_state:
                    (draft.state / "kept").write_text("steps")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail(tmp_path / "a" / "b", with_state=False)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(KeyboardInterrupt):
            fail(tmp_path / "c", with_state=True)
        assert (tmp_path / ".c.edgebuild" / "state" / "kept").read_text() == "steps"
        assert not (tmp_path / ".c.edgebuild" / "model").exists()
        with drafted(tmp_path / "c") as draft:
            assert (draft.state / "kept").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["c"]

    @pytest.mark.parametrize("renames", [1, 2])
    @pytest.mark.parametrize("has_state", [False, True])
    def test_a_run_killed_while_it_replaces_loses_nothing(
        self, tiny: Path, tmp_path: Path, renames: int, *, has_state: bool
    ) -> None:
        output, work = write_tiny_llama(tmp_path / "out"), tmp_path / ".out.edgebuild"
        (output / "config.json").write_text("{}")
        argv = [sys.executable, "-c", KILLED, str(output), str(renames), "steps" if has_state else ""]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (work / "before" / "config.json").read_text() == "{}"
        assert output.exists() == (renames == 2)

        with pytest.raises(UsageError, match="is there already"):
            verify_output(output, replace=False, sources=(tiny,))
        verify_output(output, replace=True, sources=(tiny,))
        with pytest.raises(ToolError), drafted(output) as draft:
            draft.folder.rmdir()
        assert (output / "config.json").read_text() == ("{}" if renames == 1 else "new")
        assert work.exists() == has_state
        with drafted(output) as draft:
            (draft.folder / "config.json").write_text("newest")
        assert (output / "config.json").read_text() == "newest"
        assert not work.exists()

    def test_a_failed_rename_takes_back_what_was_there(self, tmp_path: Path) -> None:
        output = write_tiny_llama(tmp_path / "out")
        names = {path.name for path in output.iterdir()}
        with pytest.raises(ToolError), drafted(output) as draft:
            draft.folder.rmdir()
        assert {path.name for path in output.iterdir()} == names
        assert not (tmp_path / ".out.edgebuild").exists()

    def test_two_runs_do_not_write_the_same(self, tmp_path: Path) -> None:
        caught: list[EdgebuildError] = []

        def second() -> None:
            try:
                with drafted(tmp_path / "out"):
                    pass
            except EdgebuildError as error:
                caught.append(error)

        with drafted(tmp_path / "out") as draft:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
            assert draft.folder.is_dir()
        assert [str(error) for error in caught] == [f"another run writes {tmp_path / 'out'}"]

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("words")
        with pytest.raises(ToolError, match="Not a directory"), drafted(tmp_path / "file" / "out"):
            pass


class TestHistory:
    STEP = Step(kind="prune", document={"dropped": [1]}, text="Words.")

    def test_card_and_history_go_on(self, tiny: Path, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        for folder in (first, second):
            folder.mkdir()
        write_card(first, read_card(tiny), self.STEP, name="first", sources="**tiny**")
        card = read_card(first)
        assert card.licence == "apache-2.0"
        assert card.steps == (self.STEP,)
        again = Step(kind="distill", document={}, text="More words.")
        write_card(second, card, again, name="second", sources="**first**")
        assert read_card(second).steps == (self.STEP, again)
        text = (second / "README.md").read_text()
        assert text.startswith("---\nmodel_name: second\nlicense: apache-2.0\n---\n# second\n")
        assert text.index("## 1. Layers left out") < text.index("## 2. Distilled")

    def test_a_model_that_says_nothing(self, tmp_path: Path) -> None:
        assert read_card(tmp_path) == Card(facts={}, steps=())
        write_card(tmp_path, read_card(tmp_path), self.STEP, name="a", sources="**b**")
        assert "states none; find out before you pass this one on" in (tmp_path / "README.md").read_text()

    @pytest.mark.parametrize("text", ["words", "---\n[", "---\n- a\n---\n", "---\nopen: true\n"])
    def test_front_matter_that_is_none(self, tmp_path: Path, text: str) -> None:
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
    def test_front_matter_that_cannot_be_read(self, tmp_path: Path, data: bytes) -> None:
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
    def test_front_matter_however_it_is_saved(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "README.md").write_bytes(data)
        assert read_card(tmp_path).licence == "mit"

    def test_a_card_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").mkdir()
        with pytest.raises(ModelError, match=r"README\.md: cannot be read: Is a directory"):
            read_card(tmp_path)

    def test_a_licence_by_another_name(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: llama3\n---\nwords")
        assert read_card(tmp_path).licence == "llama3"

    @pytest.mark.parametrize(
        "text", ["{}", '{"format": 1, "steps": [{}]}', '{"format": 2, "steps": []}', "{"]
    )
    def test_a_damaged_history(self, tmp_path: Path, text: str) -> None:
        (tmp_path / HISTORY_FILE).write_text(text)
        with pytest.raises(ModelError, match=HISTORY_FILE):
            read_card(tmp_path)


def test_nothing_slow_begins_before_all_is_checked(tiny: Path, tmp_path: Path) -> None:
    """The environment is the last to be asked for."""

    def unwanted() -> NoReturn:
        raise AssertionError("the environment was asked for")

    request = PruneRequest(
        model=tiny, output=tmp_path / "out", text=tmp_path / "gone.txt", tasks=None, drop=1, keep=None,
        by="influence", context_tokens=64, sample_tokens=64, replace=False,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"gone\.txt"):
        prune_model(request, environment=unwanted, host=host(tmp_path), progress=SilentProgress())
    assert not (tmp_path / "out").exists()


def host(folder: Path) -> Host:
    return make_host(
        environment={"HOME": str(folder)},
        working_directory=folder,
        cpu_count=1,
        now_s=0,
        cache=folder / "store",
    )

"""What `edgebuild model prune` and `distill` refuse before any weights are loaded, and the folders that they write."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from edgebuild.errors import ModelError, UsageError
from edgebuild.host import Host, make_host
from edgebuild.model.smaller.folders import read_checkpoint_folder
from edgebuild.model.smaller.prune import PruneRequest, layers_to_drop, prune_model
from edgebuild.model.smaller.text import check_text
from edgebuild.progress import SilentProgress
from tests.support.checkpoints import change_json
from tests.support.tiny_llama import write_tiny_llama


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

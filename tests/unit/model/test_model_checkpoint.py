"""Checkpoints that cannot be converted: told in one line before anything is fetched, set up, hashed or run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError
from edgebuild.model.checkpoint import find_checkpoint, read_index, read_quantization
from edgebuild.model.safetensors import read_safetensors, verify_weights
from tests.support.checkpoints import change_json, copy_demo, shard_demo, write_raw, write_tensors
from tests.unit.artifacts.telling import Told
from tests.unit.model.conftest import Load

PLACE = "/m"
CONFIG = {"architectures": ["LlamaForCausalLM"]}
SCALE = np.ones((4, 4), np.float16)


def assert_refused(load: Load, folder: Path, store: Store, told: Told, *said: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    for part in said:
        assert part in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint
    # Nothing was made, and nobody was asked.
    assert not list((store.root / "v1").glob("[adlm]*/*.seal"))
    assert not [title for title in told.titles if "set up" in title or "convert" in title]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").write_bytes(b"{]"), ("config.json is no JSON",)),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), ("config.json is no JSON",)),
        (lambda folder: (folder / "config.json").write_bytes(b"[" * 100_000), ("config.json is no JSON",)),
        (lambda folder: (folder / "config.json").write_bytes(b"[1]"), ("config.json is no JSON object",)),
        (lambda folder: change_json(folder / "config.json", {"architectures": []}), ("names no architecture",)),
        (lambda folder: (folder / "tokenizer.model").rename(folder / "t.model"), ("holds no tokenizer",)),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), ("not a whole safetensors file",)),
        (lambda folder: cut(folder / "model.safetensors", 5_000_000), ("not a whole", "the file has")),
        (lambda folder: cut(folder / "model.safetensors", 100), ("its header would have",)),
        (lambda folder: append(folder / "model.safetensors", b"more"), ("the file has", "for them")),
        (lambda folder: write_raw(folder / "model.safetensors", b"{}", b"", length=2**60), ("1152921504606846976 bytes",)),
        (lambda folder: write_raw(folder / "model.safetensors", b"{}", b""), ("hold no tensors",)),
        (lambda folder: (folder / "model.safetensors").rename(folder / "adapter_model.safetensors"), ("holds no model.safetensors, but adapter_model",)),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model-00002-of-00003.safetensors"), ("model-00001-of-00003.safetensors is not there",)),
        (lambda folder: write_tensors(folder / "model.safetensors", {"a.weight": np.ones(4, np.int8)}), ("a.weight in model.safetensors is made of integers (I8)",)),
        (lambda folder: stretch(folder / "huge.json", 200 << 20), ("huge.json is too large",)),
    ],
)  # fmt: skip
def test_spoilt_folders(
    load: Load,
    store: Store,
    told: Told,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    said: tuple[str, ...],
) -> None:
    folder = copy_demo(tmp_path / "model", without=("tokenizer.json",))
    spoil(folder)
    assert_refused(load, folder, store, told, str(folder), *said)


def cut(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size_bytes)


def stretch(path: Path, size_bytes: int) -> None:
    path.touch()
    cut(path, size_bytes)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_missing_shard_and_broken_indexes(load: Load, store: Store, told: Told, tmp_path: Path) -> None:
    folder = shard_demo(tmp_path / "model")
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert_refused(load, folder, store, told, "names model-00002-of-00003.safetensors", "1 of 3 files")
    index = folder / "model.safetensors.index.json"
    for broken in (
        b"",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "../x.safetensors"}}',
    ):
        index.write_bytes(broken)
        assert_refused(load, folder, store, told, index.name)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"", "no JSON"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": 1}', "describes no tensor under 'a'"),
        (b'{"a": {"dtype": "F16", "shape": [2], "data_offsets": [0]}}', "describes no tensor"),
        (b'{"a": {"dtype": "F16", "shape": [2.0], "data_offsets": [0, 4]}}', "gives 'a' no lengths"),
        (b'{"a": {"dtype": "F16", "shape": [-2], "data_offsets": [0, -4]}}', "gives 'a' no lengths"),
        (b'{"a": {"dtype": "F16", "shape": [99999999999999999999], "data_offsets": [0, 4]}}', "gives 'a' no lengths"),
        (b'{"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 5]}}', "a of type F16 and shape"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "a of type F32 and shape"),
        (b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}', "elements of type F4"),
        (b'{"a": {"dtype": ["F4"], "shape": [2], "data_offsets": [0, 1]}}', "elements of type"),
        (b'{"a": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}}', "leave a gap or overlap at byte 0"),
        (b'{"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}, "b": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}}', "overlap at byte 2"),
        (b'{"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}', "its tensors have 2 bytes, the file has 4"),
    ],
)  # fmt: skip
def test_headers_that_contradict_the_file(tmp_path: Path, header: bytes, said: str) -> None:
    path = write_raw(tmp_path / "a.safetensors", header, b"\0" * 4)
    with pytest.raises(ModelError) as caught:
        read_safetensors(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_good_headers(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "a.safetensors", {"b": SCALE, "a.weight": np.ones(3, np.int32)})
    assert [(entry.name, entry.dtype, entry.shape) for entry in read_safetensors(path)] == [
        ("b", "F16", (4, 4)),
        ("a.weight", "I32", (3,)),
    ]
    verify_weights({"a": path}, place=PLACE, quantization="gptq")


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, ""),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "bitnet"}}}, "bitnet"),
    ],
)  # fmt: skip
def test_quantised_checkpoints_that_can_be_read(config: dict[str, Any], found: str) -> None:
    assert read_quantization(json.dumps(CONFIG | config).encode(), (), place=PLACE) == found


@pytest.mark.parametrize(
    ("config", "files", "said"),
    [
        ({"quant_method": "awq", "bits": 4}, (), "by awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, (), "by bitsandbytes"),
        ({"quant_method": "gptq", "bits": 3}, (), "gptq with 3 bits"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, (), "in the format marlin-24"),
        (None, ("quantize_config.json",), "by GPTQ"),
        (None, ("quant_config.json",), "by AWQ"),
    ],
)
def test_quantised_checkpoints_that_cannot(
    config: dict[str, Any] | None, files: tuple[str, ...], said: str
) -> None:
    raw = json.dumps(CONFIG | ({"quantization_config": config} if config else {})).encode()
    with pytest.raises(ModelError, match="is quantised already") as caught:
        read_quantization(raw, files, place=PLACE)
    assert said in caught.value.message
    assert "16-bit checkpoint" in caught.value.hint


def test_files_of_a_checkpoint() -> None:
    names = (
        "config.json", "tokenizer.json", "model.safetensors", "README.md", "modeling_x.py", "pytorch_model.bin", "merges.txt",
        "chat_template.jinja", "consolidated.safetensors", "onnx/model.safetensors", "training_args.bin", ".gitattributes",
    )  # fmt: skip
    found = find_checkpoint(names, place=PLACE)
    assert found.settings == (
        "README.md",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "tokenizer.json",
    )
    assert found.weights == ("model.safetensors",)
    raw = json.dumps(
        {"weight_map": {"a": "model-b.safetensors", "c": "model-a.safetensors", "d": "model-b.safetensors"}}
    )
    files = ("model-a.safetensors", "model-b.safetensors")
    assert read_index(raw.encode(), files, place=PLACE) == files

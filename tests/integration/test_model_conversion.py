"""Hugging Face checkpoints become GGUF files by llama.cpp's own converter: whole ways, and every way to fail."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError
from edgebuild.model.checkpoint import READABLE_METHODS
from edgebuild.model.environment import TorchEnvironment
from edgebuild.model.safetensors import DTYPE_BYTES
from edgebuild.model.source import ModelFile, demo_model_path, load_model
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import WHOLE_FILE
from tests.support.bench import assert_failed
from tests.support.built import Edgebuild, config_files, make_edgebuild, open_store
from tests.support.checkpoints import DEMO, change_json, copy_demo, read_tensors, shard_demo, write_tensors
from tests.support.hub import LoopbackHub, running_hub
from tests.support.small_disk import SmallDisk
from tests.support.torch import LendStore
from tests.support.waiting import wait_until
from tests.unit.artifacts.telling import Told

WEIGHTS = ".safetensors"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def own_store(lend_store: LendStore, tmp_path: Path) -> Path:
    return lend_store(tmp_path / "store")


@pytest.fixture
def command(own_store: Path, tmp_path: Path) -> Edgebuild:
    return make_edgebuild(tmp_path, own_store)


def load(store: Path, reference: str | Path, told: Told, **environment: str) -> ModelFile:
    host, _ = open_store(store)
    given = {**host.environment, **environment}
    changed = type(host)(**{name: getattr(host, name) for name in host.__slots__} | {"environment": given})
    return load_model(
        str(reference), wanted=("Q4_K_M",), host=changed, store=Store(store, progress=told), progress=told
    )


def tensors_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: np.asarray(tensor.data) for tensor in GGUFReader(path).tensors}


def assert_same_tensors(path: Path, other: Path) -> None:
    found, expected = tensors_of(path), tensors_of(other)
    assert sorted(found) == sorted(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_demo_models_folder_becomes_the_file_that_ships(own_store: Path) -> None:
    """The same bytes, so that it answers the held-out lines as that one does (test_demo_model.py)."""
    told = Told()
    found = load(own_store, DEMO, told)
    assert found.path.name == "edge-alert-4m.F16.gguf"
    assert found.path.read_bytes() == demo_model_path().read_bytes()
    conversion = found.source.to_json()["converted"]
    assert re.fullmatch(r"convert_hf_to_gguf\.py of llama-cpp-python [0-9.]+", conversion["by"])
    assert conversion["files"]["model.safetensors"] == str(
        Digest.of((DEMO / "model.safetensors").read_bytes())
    )
    assert (found.source.reference, found.source.file) == ("hf", "model.safetensors")
    assert told.advanced_bytes >= found.path.stat().st_size
    # Once: the second time nothing is converted, nor hashed, and quantising need not hash the result either.
    again = Told()
    assert load(own_store, DEMO, again).path == found.path
    assert again.titles == []
    _, store = open_store(own_store)
    assert store.known_digest(found.path, WHOLE_FILE) == Digest.of(found.path.read_bytes())
    assert store.verify() == ()
    assert not list((own_store / "v1" / "temporary").glob("*"))


def test_image_of_a_folder_answers_and_says_how_it_was_made(
    lend_store: LendStore, built_lock: Path, tmp_path: Path
) -> None:
    command = make_edgebuild(tmp_path, lend_store(tmp_path / "store", everything=True))
    document = command.json(
        "image", "--profile", "x86", "--model", DEMO, "--lock", built_lock, timeout_s=1800
    )
    assert document["images"][0]["smoke"]["answer"]
    assert document["model"]["name"] == "edge-alert-4m"
    files = config_files(command.folder / "build", document["images"][0])
    source = json.loads(files["etc/edgebuild/model.json"])["source"]
    assert b"converted by convert_hf_to_gguf.py" in files["etc/edgebuild/README.md"]
    assert source["converted"] == document["model"]["source"]["converted"]
    assert source["quantized_by"] == "llama_model_quantize Q4_K_M"
    assert str(DEMO.parent) not in json.dumps(source)


def test_hubs_checkpoint_in_shards(hub: LoopbackHub, own_store: Path, tmp_path: Path) -> None:
    files = contents(shard_demo(tmp_path / "alert"))
    in_git = tuple(name for name in files if not name.endswith((WEIGHTS, ".model")))
    commit = hub.add("acme/alert", files, in_git=in_git, licence="cc0-1.0")
    told = Told()
    found = load(own_store, "hf://acme/alert", told, HF_ENDPOINT=hub.url)
    assert_same_tensors(found.path, demo_model_path())
    assert found.spec.licence in {"CC0-1.0", "cc0-1.0"}
    source = found.source.to_json()
    assert (source["reference"], source["revision"]) == (f"hf://acme/alert@{commit}", commit)
    assert set(source["converted"]["files"]) == set(files) - {"LICENSE"}
    assert any(f"checkpoint of commit {commit}" in note for note in told.notes)
    assert not [title for title in told.titles if title.startswith("hash ")]
    # What is converted needs neither weights nor network again.
    asked = len(hub.store.asked)
    for name in files:
        if name.endswith(WEIGHTS):
            entry = own_store / "v1" / "download" / Digest.of(files[name]).hex
            entry.with_name(entry.name + ".seal").unlink()
            shutil.rmtree(entry)
    hub.server.pages.clear()
    pinned = load(own_store, source["reference"], told, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert pinned.path == found.path
    assert len(hub.store.asked) == asked


def test_unknown_architecture_is_refused_before_weights_are_fetched(
    hub: LoopbackHub, own_store: Path, tmp_path: Path
) -> None:
    folder = copy_demo(tmp_path / "odd", config={"architectures": ["OddForCausalLM"], "model_type": "odd"})
    hub.add("acme/odd", contents(folder), in_git=("config.json",))
    with pytest.raises(ModelError, match=r"hf://acme/odd cannot be converted: .*OddForCausalLM") as caught:
        load(own_store, "hf://acme/odd", Told(), HF_ENDPOINT=hub.url)
    assert "\n" not in caught.value.message
    weights = Digest.of((folder / "model.safetensors").read_bytes()).hex
    assert not [path for path, _ in hub.store.asked if weights in path]


def test_code_of_a_tokenizer_is_never_run(command: Edgebuild, tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "evil", without=("tokenizer.model", "tokenizer.json"))
    sprung = spring(folder)
    (folder / "vocab.json").write_text("{}")
    change_json(
        folder / "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["trap.Trap", None]}, "tokenizer_class": "Trap"},
    )
    done = command.run("fit", "--profile", "x86", "--model", folder, check=False)
    assert_failed(
        done, 4, str(folder), "its tokenizer needs code that comes with the checkpoint, which is never run"
    )
    assert not sprung.exists()


@pytest.mark.slow
def test_code_of_a_configuration_is_never_run(command: Edgebuild, tmp_path: Path) -> None:
    folder = copy_demo(
        tmp_path / "evil", config={"auto_map": {"AutoConfig": "trap.Trap"}, "model_type": "trap"}
    )
    sprung = spring(folder)
    command.run("fit", "--profile", "x86", "--model", folder)
    assert not sprung.exists()


def spring(folder: Path) -> Path:
    """Put code into a checkpoint that tells when it is run."""
    sprung = folder.parent / "sprung"
    (folder / "trap.py").write_text(f"open({os.fspath(sprung)!r}, 'w')\nclass Trap: pass\n")
    return sprung


def test_nothing_is_set_up_where_only_the_lock_may_be_used(
    command: Edgebuild, own_store: Path, torch_packages: TorchEnvironment
) -> None:
    assert torch_packages.packages is not None
    (own_store / "v1" / "artifact" / (torch_packages.packages.parent.name + ".seal")).unlink()
    done = command.run("image", "--profile", "x86", "--model", DEMO, "--locked", check=False)
    assert_failed(done, 5, "torch and transformers, which are not set up")
    assert "edgebuild model setup" in done.stderr


@pytest.mark.slow
def test_full_disk(lend_store: LendStore, make_disk: Callable[[int], SmallDisk], tmp_path: Path) -> None:
    disk = make_disk(24 << 20)
    command = make_edgebuild(tmp_path, lend_store(disk.path / "store"))
    disk.fill(leave_bytes=3 << 20)
    done = command.run("fit", "--profile", "x86", "--model", DEMO, check=False)
    assert_failed(done, 5, "no space is left for the store", "while hf is converted")
    disk.make_room()
    assert_sound(command)
    command.run("fit", "--profile", "x86", "--model", DEMO)
    assert_sound(command)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_build_that_is_ended_while_it_converts(
    command: Edgebuild, tmp_path: Path, number: signal.Signals
) -> None:
    with converting(command, tmp_path / "log") as (running, worker):
        running.send_signal(number)
        code = running.wait(60)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert "Traceback" not in (tmp_path / "log").read_text()
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
    assert_sound(command)
    command.run("fit", "--profile", "x86", "--model", DEMO)
    assert not list((tmp_path / "store" / "v1" / "temporary").glob("*"))


def test_a_converter_that_crashes(command: Edgebuild, tmp_path: Path) -> None:
    with converting(command, tmp_path / "log") as (running, worker):
        os.kill(worker, signal.SIGKILL)
        assert running.wait(60) == 5
    said = (tmp_path / "log").read_text().splitlines()
    assert [line for line in said if line.startswith(f"error: converting {DEMO} failed: signal 9")]
    assert said[-1].startswith("hint: ")
    assert_sound(command)
    assert not list((tmp_path / "store" / "v1" / "temporary").glob("*"))


@pytest.mark.slow
def test_a_folder_that_changes_while_it_is_converted(command: Edgebuild, tmp_path: Path) -> None:
    """What was made of the changed files is kept under no key: neither the old files' nor the new ones'."""
    folder = copy_demo(tmp_path / "alert")
    with converting(command, tmp_path / "log", folder) as (running, _):
        append_line(folder / "README.md")
        code = running.wait(60)
    said = (tmp_path / "log").read_text()
    assert code == 4, said
    assert f"error: {folder / 'README.md'} changed while it was converted" in said
    assert not list((tmp_path / "store" / "v1" / "model").glob("*"))
    assert_sound(command)


def append_line(path: Path) -> None:
    with path.open("a") as file:
        file.write("\n")


class converting:  # noqa: N801 - used as a function
    """`with converting(command, log) as (running, worker)`: a build whose converter has just been started."""

    def __init__(self, command: Edgebuild, log: Path, model: Path = DEMO) -> None:
        self._command = command
        self._log = log
        self._model = model

    def __enter__(self) -> tuple[subprocess.Popen[bytes], int]:
        argv = [*self._command.program, "fit", "--profile", "x86", "--model", os.fspath(self._model)]
        with self._log.open("wb") as out:
            self._running = subprocess.Popen(
                argv, env=dict(self._command.variables), cwd=self._command.folder, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out,
            )  # fmt: skip
        marker = os.fspath(self._command.variables["EDGEBUILD_CACHE"])
        wait_until(lambda: bool(workers(marker)))
        return self._running, workers(marker)[0]

    def __exit__(self, *_: object) -> None:
        self._running.kill()
        self._running.wait()


def workers(marker: str) -> list[int]:
    """Find the converter of a store: the program itself, not its guard."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        is_worker = any(word.endswith("convert_worker.py") for word in words)
        if is_worker and any(marker in word for word in words) and not any("guard" in word for word in words):
            found.append(int(path.parent.name))
    return found


def assert_sound(command: Edgebuild) -> None:
    assert "every entry is whole" in command.run("cache", "verify").stdout


@pytest.mark.slow
def test_gptq_is_widened_to_16_bit(command: Edgebuild, own_store: Path, tmp_path: Path) -> None:
    folder = copy_demo(
        tmp_path / "gptq",
        config={"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}},
    )
    packed, expected = pack_gptq(read_tensors(DEMO / "model.safetensors"), group=64)
    write_tensors(folder / "model.safetensors", packed)
    found = load(own_store, folder, Told())
    assert found.spec.quantization == "F16"
    assert found.source.to_json()["converted"]["quantization"] == "gptq"
    made = tensors_of(found.path)
    for layer in range(6):
        name = f"model.layers.{layer}.mlp.down_proj"
        assert np.array_equal(made[f"blk.{layer}.ffn_down.weight"], expected[name])


def pack_gptq(
    tensors: Mapping[str, npt.NDArray[Any]], *, group: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[np.float16]]]:
    """Quantise the down projections to 4 bits as GPTQ stores them: eight values a word, zeros one less than they are.

    Source: GPTQModel, nn_modules/qlinear: qweight (in/8, out), qzeros (groups, out/8), scales (groups, out), g_idx (in).
    """
    packed, expected = dict(tensors), {}
    shifts = np.arange(0, 32, 4, dtype=np.int32)
    for name in [name for name in tensors if name.endswith(".down_proj.weight")]:
        weight = packed.pop(name).astype(np.float32).T
        groups, stem = weight.shape[0] // group, name.removesuffix(".weight")
        index = np.repeat(np.arange(groups, dtype=np.int32), group)
        scales = (np.abs(weight.reshape(groups, group, -1)).max(1) / 7).astype(np.float16)
        values = np.clip(np.round(weight / scales[index]) + 8, 0, 15).astype(np.int32)
        packed[f"{stem}.qweight"] = np.bitwise_or.reduce(
            values.reshape(-1, 8, values.shape[1]) << shifts[None, :, None], axis=1
        )
        zeros = np.full((groups, values.shape[1] // 8, 8), 7, np.int32)
        packed[f"{stem}.qzeros"] = np.bitwise_or.reduce(zeros << shifts, axis=2)
        packed[f"{stem}.scales"], packed[f"{stem}.g_idx"] = scales, index
        expected[stem] = (scales[index].astype(np.float32) * (values - 8)).T.astype(np.float16)
    return packed, expected


def test_what_we_say_can_be_read_is_what_the_converter_reads(converter_folder: Path) -> None:
    base = (converter_folder / "conversion" / "base.py").read_text("utf-8")
    known = set(re.findall(r'quant_method\"?\)? == "([\w-]+)"', base))
    assert known | {""} == READABLE_METHODS
    table = base[base.index("_dtype_str_map: dict") :]
    table = table[: table.index("}")]
    assert set(re.findall(r'^        "(\w+)": torch', table, re.MULTILINE)) == set(DTYPE_BYTES)

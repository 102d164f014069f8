"""`edgebuild model prune` and `distill`, as a user runs them, with a real PyTorch on small random checkpoints."""

import codecs
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebuild.model.environment import TorchEnvironment
from tests.support.built import Edgebuild, assert_refused, make_edgebuild
from tests.support.small_disk import SmallDisk
from tests.support.tiny_llama import read_weights, write_tiny_llama

# Long: PyTorch may start on a busy machine.
TIMEOUT_S = 1200
WORDS = "alt 42 m; speed 7 m/s; obstacle 30 m left; battery 18 %; temp 41 C; gps ok\n"


@pytest.fixture
def command(torch_packages: TorchEnvironment, built_store: Path, tmp_path: Path) -> Edgebuild:
    """The command with an environment that is there already, and with a text."""
    del torch_packages
    made = make_edgebuild(tmp_path, built_store)
    (tmp_path / "text.txt").write_text(WORDS * 60)
    lines = [{"prompt": f"battery {n} %", "expected": f"Battery low, {n} %."} for n in range(60)]
    # As an editor of Windows saves it.
    (tmp_path / "lines.jsonl").write_bytes(
        codecs.BOM_UTF8 + "".join(json.dumps(line) + "\r\n" for line in lines).encode()
    )
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    return made


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_layers_that_do_nothing_are_found_and_left_out(command: Edgebuild) -> None:
    """A sharded model whose layers 1 and 2 hand on what they are given: without them it says the very same."""
    before = write_tiny_llama(command.folder / "tiny", layers=5, idle={1, 2}, shards=3)
    arguments = ("--keep", "3", "--text", "lines.jsonl", "--tasks", "tasks.jsonl", "--output", "new/small")
    document = command.json("model", "prune", "tiny", *arguments, timeout_s=TIMEOUT_S)
    after = command.folder / "new" / "small"
    assert sorted(document["dropped"]) == [1, 2]
    assert document["influences"][1] == pytest.approx(0, abs=1e-6)
    assert min(document["influences"][layer] for layer in (0, 3, 4)) > 0.01
    assert (document["before"]["layers"], document["after"]["layers"]) == (5, 3)
    assert document["after"]["perplexity"] == pytest.approx(document["before"]["perplexity"], rel=1e-6)
    assert document["after"]["exact"] == document["before"]["exact"] is not None
    assert document["tasks"] == 3

    config = json.loads((after / "config.json").read_text())
    assert config == json.loads((before / "config.json").read_text()) | {"num_hidden_layers": 3}
    old, new = read_weights(before), read_weights(after)
    numbers = {0: 0, 3: 1, 4: 2}
    wanted = {}
    for name, tensor in old.items():
        found = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        if found is None:
            wanted[name] = tensor
        elif int(found[1]) in numbers:
            wanted[f"model.layers.{numbers[int(found[1])]}.{found[2]}"] = tensor
    assert new == wanted
    index = json.loads((after / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(new)
    assert index["metadata"]["total_size"] == sum(len(tensor.data) for tensor in new.values())
    assert set(index["weight_map"].values()) == {path.name for path in after.glob("*.safetensors")}
    assert document["after"]["parameters"] == sum(len(tensor.data) // 2 for tensor in new.values())

    assert names(after) == {
        "LICENSE", "README.md", "config.json", "edgebuild-model.json", "model.safetensors.index.json",
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", *index["weight_map"].values(),
    }  # fmt: skip
    card = (after / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "2 were left out: 1, 2" in card
    assert names(after.parent) == {"small"}
    assert {path.stat().st_mode & 0o777 for path in after.iterdir()} == {0o644}


@pytest.mark.parametrize(
    "kind",
    ["qwen3", pytest.param("qwen2", marks=pytest.mark.slow), pytest.param("mistral", marks=pytest.mark.slow)],
)
def test_layers_are_chosen_by_the_loss_without_them(command: Edgebuild, kind: str) -> None:
    write_tiny_llama(command.folder / "tiny", kind=kind, layers=4, idle={2})
    arguments = (
        "--layers",
        "2",
        "--by",
        "loss",
        "--text",
        "text.txt",
        "--sample",
        "500",
        "--output",
        "small",
    )
    document = command.json("model", "prune", "tiny", *arguments, timeout_s=TIMEOUT_S)
    assert len(set(document["dropped"])) == 2
    assert len(document["losses"]) == 2
    config = json.loads((command.folder / "small" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    if kind.startswith("qwen"):
        assert config["layer_types"] == ["full_attention"] * 2
        assert config["max_window_layers"] == 2
    assert document["before"]["exact"] is None


def prune(*, keep: int = 2, text: str = "text.txt", output: str | Path = "out") -> tuple[str | Path, ...]:
    return ("model", "prune", "tiny", "--keep", str(keep), "--text", text, "--output", output)


def distill(*more: str) -> tuple[str, ...]:
    return (
        "model", "distill", "--teacher", "large", "--student", "little", "--text", "lines.jsonl", "--batch", "256",
        "--rate", "0.003", "--save-every", "2", *more,
    )  # fmt: skip


def interrupt(command: Edgebuild, number: signal.Signals, work: Path) -> tuple[int, str]:
    """Begin a training of 80 steps and end it by a signal when something of it is kept; tells exit code and errors."""
    argv = [*command.program, *distill("--steps", "80", "--output", "parts")]
    with subprocess.Popen(
        argv, cwd=command.folder, env=dict(command.variables), stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while not any(work.glob("state/*.safetensors")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        assert process.stderr is not None
        told = process.stderr.read()
    return process.returncode, told


@pytest.mark.slow
def test_a_student_learns_and_an_interrupted_training_goes_on(command: Edgebuild) -> None:
    write_tiny_llama(command.folder / "large", layers=4)
    write_tiny_llama(command.folder / "little", layers=2, shards=2, seed=1)
    document = command.json(*distill("--steps", "80", "--output", "whole"), timeout_s=TIMEOUT_S)
    # The text has its say too, so that more is learnt than what a random teacher knows.
    assert document["after"]["perplexity"] < document["before"]["perplexity"] * 0.5
    assert document["teacher"]["layers"] == 4
    assert document["training"]["first_step"] == 0
    old, new = read_weights(command.folder / "little"), read_weights(command.folder / "whole")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in new.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in old.items()
    }
    assert all(new[name].data != old[name].data for name in old)

    work = command.folder / ".parts.edgebuild"
    code, told = interrupt(command, signal.SIGINT, work)
    assert code == 130, told
    assert "the same command goes on where it stopped" in told
    assert "Traceback" not in told
    assert names(work) == {"lock", "state"}
    assert not (command.folder / "parts").exists()

    other = command.run(*distill("--steps", "81", "--output", "parts"), check=False, timeout_s=TIMEOUT_S)
    assert_refused(other, 2, "keeps an unfinished training with other models, text or settings")
    resumed = command.json(*distill("--steps", "80", "--output", "parts"), timeout_s=TIMEOUT_S)
    assert 0 < resumed["training"]["first_step"] < 80
    assert read_weights(command.folder / "parts") == read_weights(command.folder / "whole")
    assert not work.exists()
    assert (
        "**tiny**, trained on the answers of **tiny**" in (command.folder / "parts" / "README.md").read_text()
    )


@pytest.mark.slow
def test_a_killed_training_goes_on_and_a_damaged_one_says_so(command: Edgebuild) -> None:
    write_tiny_llama(command.folder / "large", layers=4)
    write_tiny_llama(command.folder / "little", layers=2)
    work = command.folder / ".parts.edgebuild"
    code, told = interrupt(command, signal.SIGKILL, work)
    assert code == -signal.SIGKILL, told
    assert not (command.folder / "parts").exists()
    (state,) = work.glob("state/*.safetensors")
    whole = state.read_bytes()
    state.write_bytes(whole[:-1000])
    done = command.run(*distill("--steps", "80", "--output", "parts"), check=False, timeout_s=TIMEOUT_S)
    assert_refused(done, 5, f"{state} is damaged: the unfinished training cannot go on")
    assert "--restart" in done.stderr
    state.write_bytes(whole)
    resumed = command.json(*distill("--steps", "80", "--output", "parts"), timeout_s=TIMEOUT_S)
    assert resumed["training"]["first_step"] > 0
    assert not work.exists()
    again = command.run(*distill("--steps", "4", "--output", "parts"), check=False, timeout_s=TIMEOUT_S)
    assert_refused(again, 2, "parts is there already")
    replaced = command.json(*distill("--steps", "4", "--output", "parts", "--force"), timeout_s=TIMEOUT_S)
    assert replaced["training"]["first_step"] == 0


def test_different_vocabularies(command: Edgebuild) -> None:
    write_tiny_llama(command.folder / "large")
    write_tiny_llama(command.folder / "little", layers=2)
    path = command.folder / "little" / "tokenizer.json"
    path.write_text(path.read_text().replace('"<|user|>"', '"<|User|>"'))
    before = names(command.folder)
    done = command.run(*distill("--steps", "2", "--output", "out"), check=False, timeout_s=TIMEOUT_S)
    assert_refused(
        done, 4, "teacher and student have different vocabularies: 512 and 513 tokens, 2 of which differ"
    )
    assert names(command.folder) == before


@pytest.mark.slow
def test_a_text_that_is_too_short(command: Edgebuild) -> None:
    write_tiny_llama(command.folder / "tiny")
    (command.folder / "short.txt").write_text(WORDS)
    before = names(command.folder)
    done = command.run(*prune(text="short.txt"), check=False, timeout_s=TIMEOUT_S)
    assert_refused(done, 2, "tokens; at least 512 are needed")
    assert names(command.folder) == before


@pytest.mark.slow
def test_damaged_weights(command: Edgebuild) -> None:
    write_tiny_llama(command.folder / "tiny")
    path = command.folder / "tiny" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    before = names(command.folder)
    done = command.run(*prune(), check=False, timeout_s=TIMEOUT_S)
    assert_refused(done, 4, f"{command.folder / 'tiny'} cannot be loaded")
    assert names(command.folder) == before


@pytest.mark.slow
def test_no_room_for_the_model(command: Edgebuild, make_disk: Callable[[int], SmallDisk]) -> None:
    write_tiny_llama(command.folder / "tiny")
    disk = make_disk(1 << 20)
    disk.fill(leave_bytes=64 << 10)
    output = disk.path / "out"
    done = command.run(*prune(keep=3, output=output), check=False, timeout_s=TIMEOUT_S)
    assert_refused(done, 5, "no space is left to write")
    assert names(disk.path) == {"ballast"}


@pytest.mark.slow
def test_no_room_for_an_unfinished_training(
    command: Edgebuild, make_disk: Callable[[int], SmallDisk]
) -> None:
    write_tiny_llama(command.folder / "large")
    write_tiny_llama(command.folder / "little", layers=2)
    disk = make_disk(1 << 20)
    disk.fill(leave_bytes=128 << 10)
    done = command.run(
        *distill("--steps", "4", "--output", str(disk.path / "out")), check=False, timeout_s=TIMEOUT_S
    )
    assert_refused(done, 5, "no space is left to write")
    assert names(disk.path) == {"ballast"}
    disk.make_room()
    command.run(*distill("--steps", "4", "--output", str(disk.path / "out")), timeout_s=TIMEOUT_S)
    assert names(disk.path) == {"out"}


def test_without_network_the_environment_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    bare = make_edgebuild(tmp_path, tmp_path / "store").offline()
    write_tiny_llama(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text(WORDS * 60)
    before = names(tmp_path)
    done = bare.run(*prune(), check=False, timeout_s=TIMEOUT_S)
    assert_refused(done, 5, "torch and transformers cannot be set up")
    assert names(tmp_path) - {"store"} == before


@pytest.mark.slow
def test_the_demo_model_pruned_to_a_third_and_taught_again(command: Edgebuild, built_lock: Path) -> None:
    """Two of six layers: half of the answers go wrong; 300 steps bring them back. About four minutes of one core."""
    demo = Path(__file__).parents[2] / "images" / "demo-model"
    argv = [sys.executable, str(demo / "generate.py"), "train", "--count", "20000", "--seed", "5"]
    with (command.folder / "train.jsonl").open("w") as out:
        subprocess.run(argv, stdout=out, check=True)
    given = ("--text", "train.jsonl", "--tasks", "tasks.jsonl")
    heldout = (demo / "heldout.jsonl").read_text().splitlines(keepends=True)
    (command.folder / "tasks.jsonl").write_text("".join(heldout[:200]))
    pruned = command.json(
        "model", "prune", demo / "hf", "--keep", "2", *given, "--output", "pruned", timeout_s=2 * TIMEOUT_S
    )
    taught = command.json(
        "model", "distill", "--teacher", demo / "hf", "--student", "pruned", *given, "--output", "taught",
        "--steps", "300", "--rate", "0.001", timeout_s=4 * TIMEOUT_S,
    )  # fmt: skip
    print(
        f"exact: {pruned['before']['exact']}, pruned {pruned['after']['exact']}, taught {taught['after']['exact']}"
    )
    assert pruned["before"]["exact"] >= 0.98
    assert pruned["after"]["exact"] <= 0.6
    assert taught["before"]["exact"] == pruned["after"]["exact"]
    assert taught["after"]["exact"] >= 0.95
    assert taught["after"]["parameters"] < pruned["before"]["parameters"] * 0.4
    steps = json.loads((command.folder / "taught" / "edgebuild-model.json").read_text())["steps"]
    assert [step["kind"] for step in steps] == ["prune", "distill"]

    # llama.cpp reads what came out, and answers alike.
    evaluated = command.json(
        "model", "eval", "taught", "--types", "F16", "--eval-text", "tasks.jsonl", "--eval-tasks", "tasks.jsonl",
        "--lock", built_lock, timeout_s=TIMEOUT_S,
    )["types"][0]["tasks"]  # fmt: skip
    assert evaluated["asked"] == 200
    assert evaluated["exact"] / 200 == pytest.approx(taught["after"]["exact"], abs=0.02)

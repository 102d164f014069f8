"""`edgebuild init` and what commands do in a folder with a project file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.bench import assert_failed
from tests.support.built import PASSWORD, Edgebuild, make_edgebuild
from tests.support.hub import LoopbackHub, running_hub
from tests.support.peers.registry import Registry
from tests.support.tiny_gguf import write_tiny_gguf

SHELF = "extends: x86\nschema_version: 1\nname: shelf\n"


@pytest.fixture
def command(tmp_path: Path) -> Edgebuild:
    """The command with an empty store."""
    return make_edgebuild(tmp_path, tmp_path / "store")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running_hub() as running:
        yield running


def write(folder: Path, **values: object) -> None:
    document = {"schema_version": 1, "model": "demo", "profiles": ["x86"], **values}
    (folder / "edgebuild.yaml").write_text(json.dumps(document), "utf-8")


def fits(command: Edgebuild, *args: str) -> dict[str, str]:
    """Model and quantisation by profile, as `fit` tells them."""
    document = command.json("fit", *args)
    return {fit["profile"]: f"{document['model']} {fit['quantization']}" for fit in document["fits"]}


def test_what_init_writes_is_what_is_built(command: Edgebuild) -> None:
    path = command.folder / "edgebuild.yaml"
    done = command.run("init", "--model", "demo", "--profile", "x86", "--profile", "pi4")
    assert "edgebuild image" in done.stdout
    text = path.read_text("utf-8")
    assert yaml.safe_load(text) == {
        "schema_version": 1, "model": "demo", "profiles": ["x86", "pi4"], "gates": {"licence_required": False},
    }  # fmt: skip
    assert "# yaml-language-server: $schema=edgebuild.schema.json\n" in text
    assert set(fits(command)) == {"x86", "pi4"}
    # Its examples hold as they stand.
    examples = [line for line in text.splitlines() if line.startswith(("# registry:", "# tags:", "# key:"))]
    assert len(examples) == 3
    path.write_text(text + "\n".join(line.removeprefix("# ") for line in examples) + "\n", "utf-8")
    assert set(fits(command)) == {"x86", "pi4"}


def test_init_keeps_what_is_there(command: Edgebuild) -> None:
    path = command.folder / "edgebuild.yaml"
    path.write_text("mine", "utf-8")
    assert_failed(command.run("init", check=False), 2, "is there already")
    assert path.read_text("utf-8") == "mine"
    command.run("init", "--force")
    assert yaml.safe_load(path.read_text("utf-8"))["profiles"] == ["pi4"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--model", "hf://acme"), 2, "names no repository"),
        (("--profile", "pi6"), 3, "unknown profile 'pi6'"),
    ],
)
def test_init_writes_nothing_that_cannot_be_used(
    command: Edgebuild, args: tuple[str, ...], code: int, said: str
) -> None:
    assert_failed(command.run("init", *args, check=False), code, said)
    assert not (command.folder / "edgebuild.yaml").exists()


@pytest.mark.parametrize("model", ["a b: c.gguf", "true.gguf", "x #y.gguf", "ä.gguf"])
def test_init_quotes_what_needs_it(command: Edgebuild, model: str) -> None:
    command.run("init", "--model", model)
    assert yaml.safe_load((command.folder / "edgebuild.yaml").read_text("utf-8"))["model"] == model


def test_schema_is_printed(command: Edgebuild) -> None:
    assert "gates" in json.loads(command.run("init", "--schema").stdout)["properties"]


def test_options_win_and_paths_are_beside_the_file(command: Edgebuild) -> None:
    project = command.folder / "project"
    project.mkdir()
    write_tiny_gguf(project / "own.gguf")
    (project / "shelf.yaml").write_text(SHELF, "utf-8")
    write(project, model="own.gguf", profiles=["./shelf.yaml"])
    assert fits(command, "--project", "project/edgebuild.yaml") == {"shelf": "tiny Q4_K_M"}
    assert fits(command, "--project", "project/edgebuild.yaml", "--model", "demo", "--profile", "pi4") == {
        "pi4": "edge-alert-4m Q4_K_M"
    }
    assert len(fits(command)) > 3, "without a project file all built-in profiles are shown"


def test_faults_of_the_file_are_told_with_their_lines(command: Edgebuild) -> None:
    (command.folder / "edgebuild.yaml").write_text(
        "schema_version: 1\nmodel: demo\nprofile: [pi4]\nprofiles: [pi6]\n", "utf-8"
    )
    done = command.run("fit", check=False)
    assert_failed(done, 3, "1 fault in the project file")
    assert "edgebuild.yaml:3: profile: unknown key; did you mean 'profiles'?" in done.stderr
    write(command.folder, profiles=["pi6"])
    assert_failed(command.run("fit", check=False), 3, "edgebuild.yaml: profiles: unknown profile 'pi6'")
    assert_failed(command.run("fit", "--project", "gone.yaml", check=False), 2, "no such project file")


def test_image_without_anything_to_go_by(command: Edgebuild) -> None:
    done = command.run("image", check=False)
    assert_failed(done, 2, "neither --profile nor a project file")
    assert "edgebuild init" in done.stderr
    write(command.folder)
    assert_failed(command.run("image", "--push", check=False), 2, "--push needs a name")
    tags = ("--tag", "127.0.0.1:5000/a:1", "--tag", "127.0.0.1:5000/b:1")
    assert_failed(command.run("image", *tags, check=False), 2, "several repositories")


def test_licence_is_missed_or_required(command: Edgebuild, hub: LoopbackHub, tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "a.gguf").read_bytes()
    hub.add("acme/bare", {"a.gguf": gguf})
    hub.add("acme/stated", {"a.gguf": gguf}, licence="mit")
    env = {"HF_ENDPOINT": hub.url}
    write(command.folder, model="hf://acme/bare", gates={"licence_required": True})
    done = command.run("image", env=env, check=False)
    assert_failed(done, 4, "tiny: neither the model nor its source (hf://acme/bare@", "states a licence")
    assert not (command.folder / "build").exists()
    assert not (command.folder / "edgebuild.lock").exists()


def test_image_does_what_the_file_says(
    edgebuild: Edgebuild, built_lock: Path, hub: LoopbackHub, registry: Registry, tmp_path: Path
) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", dim=256).read_bytes()
    hub.add("acme/tiny", {"tiny-Q8_0.gguf": gguf}, licence="mit")
    env = {"HF_ENDPOINT": hub.url, "EDGEBUILD_PASSWORD": PASSWORD}
    edgebuild.run("keys", "generate", "--output", "keys", env=env)
    (edgebuild.folder / "shelf.yaml").write_text(SHELF + "quantization: Q8_0\n", "utf-8")
    write(
        edgebuild.folder, model="hf://acme/tiny", profiles=["./shelf.yaml"], registry=f"{registry.host}/acme/tiny",
        tags=["1.0", "latest"], key="keys/cosign.key", gates={"licence_required": True},
    )  # fmt: skip
    document = edgebuild.json("image", "--push", "--no-test", "--lock", built_lock, env=env)
    assert document["model"]["licence"] == "mit"
    names = [f"{registry.host}/acme/tiny:{tag}" for tag in ("1.0", "latest")]
    assert document["index"]["tags"] == names
    assert document["images"][0]["signed_by"] == "cosign.key"
    for name in (*names, *(f"{name}-shelf" for name in names), "build"):
        verified = edgebuild.json("verify", name, "--key", "keys/cosign.pub")
        assert verified
    listed = json.loads((edgebuild.folder / "build" / "index.json").read_bytes())["manifests"]
    tags = {entry["annotations"].get("org.opencontainers.image.ref.name") for entry in listed}
    assert {"1.0", "latest", "1.0-shelf", "latest-shelf"} <= tags

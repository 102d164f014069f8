"""Project files: what they say, and every fault where it stands."""

from pathlib import Path

import pytest

from edgebuild.errors import ProfileError
from edgebuild.oci.reference import Reference
from edgebuild.project import LoadedProject, load_project, project_schema

WHOLE = """schema_version: 1
model: models/a.gguf
profiles: [pi4, ./shelf.yaml]
registry: registry.example.com/acme/llm
tags: ["1.0", latest]
key: keys/cosign.key
gates:
  licence_required: true
"""


def load(folder: Path, text: str) -> LoadedProject:
    (folder / "edgebuild.yaml").write_text(text, "utf-8")
    return load_project(folder / "edgebuild.yaml")


def faults_of(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ProfileError) as caught:
        load(folder, text)
    assert caught.value.exit_code == 3
    prefix = f"{folder}/"
    return tuple(fault.removeprefix(prefix) for fault in caught.value.faults) or (
        caught.value.message.removeprefix(prefix),
    )


def test_whole_file(tmp_path: Path) -> None:
    found = load(tmp_path, WHOLE)
    assert found.model == str(tmp_path / "models/a.gguf")
    assert found.key == str(tmp_path / "keys/cosign.key")
    assert found.references == tuple(
        Reference.parse(f"registry.example.com/acme/llm:{tag}") for tag in ("1.0", "latest")
    )
    assert found.project.gates.licence_required


def test_smallest_file(tmp_path: Path) -> None:
    found = load(tmp_path, "schema_version: 1\nmodel: demo\nprofiles: [pi4]\n")
    assert (found.model, found.key, found.references) == ("demo", None, ())
    assert not found.project.gates.licence_required


def test_registry_without_tags_means_latest(tmp_path: Path) -> None:
    text = "schema_version: 1\nmodel: hf://acme/tiny\nprofiles: [pi4]\nregistry: localhost:5000/a\n"
    found = load(tmp_path, text)
    assert found.references == (Reference.parse("localhost:5000/a:latest"),)
    assert found.model == "hf://acme/tiny"


def test_all_faults_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = (
        "schema_version: 2\n"
        "modle: demo\n"
        "model: hf://acme\n"
        "profiles: []\n"
        "registry: registry.example.com/acme/llm:1.0\n"
        "tags: [a, -b]\n"
        "gates:\n"
        "  licence: true\n"
        "  licence_required: 1\n"
    )
    faults = "\n".join(faults_of(tmp_path, text))
    for expected in (
        "edgebuild.yaml:1: schema_version: Input should be 1",
        "edgebuild.yaml:2: modle: unknown key; did you mean 'model'?",
        "edgebuild.yaml:3: model: hf://acme names no repository of a hub",
        "edgebuild.yaml:4: profiles: ",
        "edgebuild.yaml:5: registry: 'registry.example.com/acme/llm:1.0' is more than a repository",
        "edgebuild.yaml:6: tags.1: '-b' is not a tag",
        "edgebuild.yaml:8: gates.licence: unknown key; did you mean 'licence_required'?",
        "edgebuild.yaml:9: gates.licence_required: Input should be a valid boolean",
    ):
        assert expected in faults


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("registry: registry.example.com/acme/llm\n", ""), "edgebuild.yaml:4: tags: tags name nothing"),
        (("[pi4, ./shelf.yaml]", "[pi4, pi4]"), "edgebuild.yaml:3: profiles: 'pi4' stands there twice"),
        (('["1.0", latest]', "[a, a]"), "edgebuild.yaml:5: tags: 'a' stands there twice"),
        (('["1.0", latest]', "[1.0]"), "edgebuild.yaml:5: tags.0: Input should be a valid string"),
        (("[pi4, ./shelf.yaml]", "pi4"), "edgebuild.yaml:3: profiles: Input should be a valid tuple"),
        (("model: models/a.gguf", 'model: ""'), "edgebuild.yaml:2: model: "),
        (("models/a.gguf", "https://h.example/a.gguf"), "edgebuild.yaml:2: model: https://h.example/a.gguf comes without its sha256"),
        (("schema_version: 1\n", ""), "schema_version: is required"),
    ],
)  # fmt: skip
def test_single_faults(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    assert any(
        fault.startswith(expected) or expected in fault
        for fault in faults_of(tmp_path, WHOLE.replace(*change))
    )


def test_other_files_are_told_as_project_files(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="not a mapping") as caught:
        load(tmp_path, "- pi4\n")
    assert "`model: …`" in caught.value.hint


def test_schema_describes_every_key() -> None:
    schema = project_schema()
    assert set(schema["properties"]) == {
        "schema_version", "model", "profiles", "registry", "tags", "key", "shard_size", "gates",
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    assert all(value.get("description") for value in schema["properties"].values())
    assert schema["required"] == ["schema_version", "model", "profiles"]

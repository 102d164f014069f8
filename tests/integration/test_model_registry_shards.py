"""Artifacts that hold a model in several layers, as Docker Model Runner and oras push it, in a real registry."""

import json
import shutil
from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError
from edgebuild.gguf_shards import cut_gguf
from edgebuild.oci.digest import Digest
from tests.integration.test_model_registry import Load, load, push, store
from tests.support.faulty_registry import Corrupt, FaultyRegistry
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.support.shards import write_shards
from tests.support.tiny_gguf import write_tiny_gguf

__all__ = ["load", "store"]  # fixtures

GGUF = "application/vnd.docker.ai.gguf.v3"
NAMED = "org.cncf.model.filepath"
CONFIG = ("application/vnd.docker.ai.model.config.v0.1+json", b'{"config": {"format": "gguf"}}')


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("parts")
    whole = write_tiny_gguf(folder / "whole.gguf", dim=64, ff=64)
    return write_shards(cut_gguf(whole, shard_bytes=whole.stat().st_size // 2), folder, "tiny-F16")


def push_parts(host: str, parts: tuple[Path, ...], *, named: bool) -> Digest:
    layers = tuple(
        (GGUF, path.read_bytes(), {NAMED: f"model/{path.name}"} if named else {}) for path in parts
    )
    return push(host, "ai/tiny", layers, config=CONFIG)


@pytest.mark.parametrize("named", [True, False])
def test_a_model_in_several_layers(
    registry: Registry, load: Load, store: Store, parts: tuple[Path, ...], named: bool
) -> None:
    digest = push_parts(registry.host, parts[::-1] if named else parts, named=named)
    found = load(f"oci://{registry.host}/ai/tiny:1")
    assert [path.read_bytes() for path in found.files] == [path.read_bytes() for path in parts]
    names = [path.name if named else path.name.replace("-F16", "") for path in parts]
    assert found.source.to_json() == {
        "kind": "oci",
        "reference": f"oci://{registry.host}/ai/tiny@{digest}",
        "revision": str(digest),
        "file": names[0],
        "digest": None,
        "licence": None,
        "files": [
            {"file": name, "digest": str(Digest.of(path.read_bytes()))}
            for name, path in zip(names, parts, strict=True)
        ],
    }
    assert found.spec.file_name == ("tiny-F16.gguf" if named else "tiny.gguf")
    before = len(registry.accesses())
    again = load(found.source.reference)
    assert (again.files, again.source) == (found.files, found.source)
    assert len(registry.accesses()) == before, "the registry was asked for what the store has"
    assert store.verify() == ()


def test_what_oras_pushed(
    registry: Registry, load: Load, parts: tuple[Path, ...], oras: Tool, tmp_path: Path
) -> None:
    for path in parts:
        shutil.copy(path, tmp_path)
    files = [f"{path.name}:application/octet-stream" for path in parts]
    oras.run("push", "--plain-http", f"{registry.host}/acme/oras:1", *files, cwd=tmp_path)
    assert len(load(f"oci://{registry.host}/acme/oras:1").files) == len(parts)


def test_nameless_layers_that_are_not_one_model(
    registry: Registry, load: Load, parts: tuple[Path, ...]
) -> None:
    push_parts(registry.host, parts[::-1], named=False)
    with pytest.raises(ModelError, match=r"split\.no is \d, not 0: it is not file 1 of"):
        load(f"oci://{registry.host}/ai/tiny:1")


def test_a_layer_that_is_missing(registry: Registry, load: Load, parts: tuple[Path, ...]) -> None:
    push_parts(registry.host, parts[:-1], named=True)
    with pytest.raises(ModelError, match=f"lacks model/{parts[-1].name} of a model in {len(parts)} files"):
        load(f"oci://{registry.host}/ai/tiny:1")


def test_a_note_that_is_damaged_is_not_believed(
    faulty_registry: FaultyRegistry, load: Load, store: Store, parts: tuple[Path, ...]
) -> None:
    digest = push_parts(faulty_registry.host, parts, named=True)
    reference = f"oci://{faulty_registry.host}/ai/tiny@{digest}"
    first = load(reference)
    note = next((store.root / "v1" / "notes").glob("oci-*.json"))
    document = json.loads(note.read_bytes())
    for files in (None, [1], [["a"]], [["a", "b"]], [["a.gguf", "0" * 64]]):
        note.write_text(json.dumps(document | {"files": files}))
        assert load(reference).files == first.files
    # What is fetched anew is compared anew.
    shutil.rmtree(first.path.parent)
    damaged = faulty_registry.inject(Corrupt(), method="GET", path=first.source.files[0][1])
    assert load(reference).path.read_bytes() == parts[0].read_bytes()
    assert damaged.hits == 1

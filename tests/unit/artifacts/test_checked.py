"""The memory of layers that were read before, and layouts that take effect only when the checker has read them."""

import os
from pathlib import Path

import pytest

from edgebuild.artifacts.checked import CheckedLayers
from edgebuild.artifacts.store import Store
from edgebuild.errors import ImageError
from edgebuild.oci.check import check_layout
from edgebuild.oci.check_layer import LayerFacts, read_layer
from edgebuild.oci.digest import Digest
from edgebuild.oci.image import Image
from edgebuild.oci.index import make_index
from edgebuild.oci.layer import Role
from edgebuild.oci.layout import LayoutSink
from edgebuild.oci.seals import WHOLE_FILE
from edgebuild.oci.tar import bytes_layer, tree_layer
from edgebuild.progress import SilentProgress
from tests.unit.oci.making import files_of, fill, image_of, server_layer, write_tree


@pytest.fixture
def blob(tmp_path: Path, store: Store) -> Path:
    """A layer of some size, hashed a moment ago."""
    contents = {f"folder/{number}.bin": os.urandom(1 << 20) for number in range(3)}
    tree = write_tree(tmp_path / "tree", {**contents, "folder/naïve €": b"text", "link": "folder"})
    path = tmp_path / "layer.tar.gz"
    layer = tree_layer(tree, role=Role.SERVER, prefix="opt/edge/server", destination=path)
    store.remember_digest(path, WHOLE_FILE, layer.digest)
    return path


def digest_of(path: Path) -> str:
    return str(Digest.of(path.read_bytes()))


def test_a_layer_is_known_again_as_it_was_found(blob: Path, store: Store) -> None:
    facts = read_layer(blob, compressed=True)
    assert CheckedLayers(store).recall(blob, digest_of(blob)) is None
    CheckedLayers(store).remember(facts)
    assert CheckedLayers(store).recall(blob, digest_of(blob)) == facts


def test_a_blob_that_was_touched_is_read_again(blob: Path, store: Store) -> None:
    memory = CheckedLayers(store)
    memory.remember(read_layer(blob, compressed=True))
    with blob.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    assert memory.recall(blob, digest_of(blob)) is None


@pytest.mark.parametrize(
    "note", [b"", b"[]", b'{"diff_id": 1}', b'{"diff_id": "x", "members": [[1]]}', b"\xff"]
)
def test_a_damaged_note_is_no_note(blob: Path, store: Store, note: bytes) -> None:
    memory = CheckedLayers(store)
    memory.remember(read_layer(blob, compressed=True))
    (path,) = (store.root / "v1" / "notes").iterdir()
    path.write_bytes(note)
    assert memory.recall(blob, digest_of(blob)) is None


class Recording(CheckedLayers):
    """Notes which layers had to be read."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.read: list[str] = []

    def remember(self, facts: LayerFacts) -> None:
        self.read.append(facts.digest)
        super().remember(facts)


def test_a_layout_is_read_whole_once_and_then_only_what_is_small(tmp_path: Path, store: Store) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(os.urandom(2 << 20))
    out = tmp_path / "out"

    def build() -> set[Role]:
        memory = Recording(store)
        with LayoutSink(out, progress=SilentProgress(), seals=store, checked=memory) as sink:
            index = fill(sink, tmp_path, model=model)
        layers = {layer.digest.hex: layer.role for image in index.images for layer in image.layers}
        return {layers[digest] for digest in memory.read}

    assert build() == {Role.MODEL, Role.SERVER, Role.CONFIG}
    assert build() == {Role.SERVER, Role.CONFIG}
    assert check_layout(out) == ()


def test_what_does_not_pass_the_checker_never_takes_effect(tmp_path: Path, store: Store) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(os.urandom(2 << 20))
    out = tmp_path / "out"
    settings = {"progress": SilentProgress(), "seals": store, "checked": CheckedLayers(store)}
    with LayoutSink(out, **settings) as sink:  # type: ignore[arg-type]
        fill(sink, tmp_path, model=model)
    before = files_of(out)
    # The config layer below the server's: the writer does not mind, the checker does.
    config = bytes_layer({"/etc/edgebuild/runtime.json": b"{}"}, role=Role.CONFIG)
    wrong = image_of("pi4", (config, server_layer(tmp_path)))
    with pytest.raises(ImageError, match="server lies above config") as caught:
        _put(LayoutSink(out, **settings), wrong)  # type: ignore[arg-type]
    assert caught.value.hint
    assert files_of(out) == before


def _put(opened: LayoutSink, image: Image) -> None:
    with opened as sink:
        for digest, content in image.blobs().items():
            sink.put_blob(content, digest=digest, title=digest.short)
        sink.put_manifest(image.manifest, image.descriptor)
        index = make_index((image,), annotations={})
        sink.put_manifest(index.raw, index.descriptor)

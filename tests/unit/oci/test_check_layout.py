"""The checker: nothing is wrong with a sound layout, and every single broken rule is found where it is."""

import ast
import gzip
import itertools
import tarfile
import tracemalloc
from pathlib import Path

import pytest

import edgebuild.oci
from edgebuild.errors import ImageError
from edgebuild.oci import check_layer
from edgebuild.oci.check import check_layout, verify_layout
from tests.unit.oci.drafts import (
    REF_NAME,
    DraftLayer,
    Json,
    make_draft,
    member,
)
from tests.unit.oci.mutating import (
    attribute,
    config,
    index_json,
    manifest,
    model_of,
)
from tests.unit.oci.mutations import MUTATIONS


def test_a_sound_layout_has_no_faults(tmp_path: Path) -> None:
    assert check_layout(make_draft().write(tmp_path)) == ()
    verify_layout(tmp_path)


def test_signatures_are_followed_and_tolerated(tmp_path: Path) -> None:
    draft = make_draft()
    draft.signed = True
    assert check_layout(draft.write(tmp_path)) == ()


@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_a_model_in_several_files(tmp_path: Path, count: int) -> None:
    draft = make_draft()
    model_of(*(f"m-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)))(draft)
    assert check_layout(draft.write(tmp_path)) == ()


def test_the_layers_of_a_base_image_keep_their_own_rules(tmp_path: Path) -> None:
    draft = make_draft()
    foreign = [member("usr/bin/su", b"", mode=0o4755, mtime=5, uname="root"), member(".wh.x"), member("a")]
    draft.images[0].layers.insert(0, DraftLayer("base", foreign))
    assert check_layout(draft.write(tmp_path)) == ()


def test_other_models_of_the_same_name_and_size(tmp_path: Path) -> None:
    draft = make_draft()
    info, data = draft.layer("model", 1).members[1]
    draft.layer("model", 1).members[1] = (info, b"Z" * len(data))
    assert check_layout(draft.write(tmp_path)) == ()


def test_the_checker_shares_no_code_with_the_writers() -> None:
    package = Path(edgebuild.oci.__path__[0])
    imported = set()
    for path in package.glob("check*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgebuild"):
                imported.add(node.module or "")
    own = {f"edgebuild.oci.{path.stem}" for path in package.glob("check*.py")}
    assert imported - own == {"edgebuild.errors"}


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_broken_rule_is_found(name: str, tmp_path: Path) -> None:
    mutate, message = MUTATIONS[name]
    draft = make_draft()
    mutate(draft)
    faults = [str(fault) for fault in check_layout(draft.write(tmp_path))]
    assert any(message in fault for fault in faults), faults
    assert all("\n" not in fault and fault.isprintable() for fault in faults)


def test_verify_says_all_faults_at_once(tmp_path: Path) -> None:
    draft = make_draft()
    attribute("etc", "uid", 5)(draft)
    config(lambda document: document["history"].pop())(draft)
    with pytest.raises(ImageError, match=r"has 3 faults: .*history.*; .*owner.*; .*differs") as caught:
        verify_layout(draft.write(tmp_path))
    assert caught.value.hint


def test_an_unreadable_layout(tmp_path: Path) -> None:
    assert [str(fault) for fault in check_layout(tmp_path / "nowhere")] == [
        "oci-layout: is missing",
        "index.json: is missing",
        "index.json: names no index of images",
        "blobs: is missing",
    ]


def test_a_rule_broken_a_thousand_times_is_one_fault(tmp_path: Path) -> None:
    draft = make_draft()
    names = sorted(str(number) for number in range(1000))
    draft.layer("rootfs").members = [member(name, uid=5) for name in names]
    faults = check_layout(draft.write(tmp_path))
    assert [fault.message for fault in faults] == ["owner is not 0:0: 0 and 999 more"]


def test_shared_blobs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Path.open

    def recording(self: Path, *arguments: str, **settings: str) -> object:
        read.append(self.name)
        return original(self, *arguments, **settings)  # type: ignore[call-overload]

    draft = make_draft()
    draft.signed = True
    draft.write(tmp_path)
    monkeypatch.setattr(Path, "open", recording)
    assert check_layout(tmp_path) == ()
    counts = {name: len(list(group)) for name, group in itertools.groupby(sorted(read))}
    blobs = {path.name for path in (tmp_path / "blobs/sha256").iterdir()}
    assert {name: count for name, count in counts.items() if name in blobs and count > 1} == {}


def test_memory_does_not_grow_with_a_layer(tmp_path: Path) -> None:
    """Zeros that unpack to a thousand times their size: streamed."""
    bomb = tmp_path / "bomb"
    inflated = 64 << 20
    info = member("zeros", size=inflated)[0]
    with gzip.GzipFile(bomb, "wb", mtime=0) as out:
        out.write(info.tobuf(tarfile.PAX_FORMAT))
        for _ in range(inflated >> 20):
            out.write(bytes(1 << 20))
        out.write(bytes(1024))
    tracemalloc.start()
    facts = check_layer.read_layer(bomb, compressed=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert facts.faults == ()
    assert facts.members["zeros"].size_bytes == inflated
    assert peak < 16 << 20


def test_an_image_of_two_tags_is_checked_for_both(tmp_path: Path) -> None:
    def again(document: Json) -> None:
        for old in list(document["manifests"]):
            name = old["annotations"][REF_NAME].replace("1", "2", 1)
            document["manifests"].append({**old, "annotations": {**old["annotations"], REF_NAME: name}})

    draft = make_draft()
    index_json(again)(draft)
    assert check_layout(draft.write(tmp_path)) == ()


def test_a_descriptor_that_misuses_a_manifest(tmp_path: Path) -> None:
    """Documents of the wrong shape anywhere give faults, never a crash."""
    shapes: tuple[object, ...] = (None, 1, "x", [], {}, [[]], {"digest": 5}, {"digest": "sha256:" + "0" * 64})
    for number, (shape, key) in enumerate(
        itertools.product(shapes, ("config", "layers", "annotations", "subject"))
    ):
        draft = make_draft()
        manifest(lambda document, key=key, shape=shape: document.update({key: shape}))(draft)  # type: ignore[misc]
        assert isinstance(check_layout(draft.write(tmp_path / str(number))), tuple)
    for number, (shape, key) in enumerate(itertools.product(shapes, ("config", "rootfs", "history", "os"))):
        draft = make_draft()
        config(lambda document, key=key, shape=shape: document.update({key: shape}))(draft)  # type: ignore[misc]
        assert isinstance(check_layout(draft.write(tmp_path / f"config{number}")), tuple)

"""The checker sees every damage and survives every document."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebuild.errors import ImageError
from edgebuild.oci.check import check_layout
from edgebuild.oci.check_layer import read_layer
from edgebuild.oci.layout import read_layout
from tests.unit.oci.drafts import INDEX, archive, make_draft, member, put

SLOW = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("layout") / "sound"
    draft = make_draft()
    draft.signed = True
    draft.write(path)
    assert check_layout(path) == ()
    yield path
    assert check_layout(path) == ()


@SLOW
@given(st.data())
def test_any_damaged_blob_is_found(sound: Path, data: st.DataObject) -> None:
    blobs = sorted((sound / "blobs/sha256").iterdir())
    blob = data.draw(st.sampled_from(blobs))
    raw = blob.read_bytes()
    position = data.draw(st.integers(0, len(raw) - 1))
    damage = data.draw(st.sampled_from(["flip", "cut", "grow", "lose"]))
    try:
        if damage == "flip":
            mask = data.draw(st.integers(1, 255))
            blob.write_bytes(raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :])
        elif damage == "cut":
            blob.write_bytes(raw[:position])
        elif damage == "grow":
            blob.write_bytes(raw + b"\0")
        else:
            blob.unlink()
        assert check_layout(sound)
    finally:
        blob.write_bytes(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["digest", "size", "mediaType", "annotations", "manifests", "layers", "config", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
KEYS = st.sampled_from(
    [
        "config",
        "layers",
        "rootfs",
        "history",
        "annotations",
        "manifests",
        "subject",
        "platform",
        "os",
        "mediaType",
    ]
)


@SLOW
@given(KEYS, JSON, st.sampled_from(["config", "manifest", "entry", "index", "index.json"]))
def test_any_document_gives_faults_not_crashes(key: str, value: object, where: str) -> None:
    draft = make_draft()

    def change(document: dict[str, object]) -> None:
        document[key] = value

    if where == "config":
        draft.images[0].change_config = change
    elif where == "manifest":
        draft.images[0].change_manifest = change
    elif where == "entry":
        draft.images[0].change_entry = change
        draft.images[0].change_manifest = change
    elif where == "index":
        draft.change_index = change
    else:
        draft.change_index_json = change
    with tempfile.TemporaryDirectory() as scratch:
        path = draft.write(Path(scratch, "layout"))
        for fault in check_layout(path):
            assert str(fault).isprintable()
        survive(path)


def survive(path: Path) -> None:
    """Read it with the reader too: a value or an ImageError with one line."""
    said = ""
    try:
        read_layout(path).index()
    except ImageError as error:
        said = error.message
    assert said.isprintable()


@SLOW
@given(JSON)
def test_any_index_json(value: object) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (path / "index.json").write_text(json.dumps(value))
        assert check_layout(path)
        survive(path)


@SLOW
@given(st.data(), st.booleans())
def test_any_bytes_as_a_layer(data: st.DataObject, compressed: bool) -> None:
    """Damaged archives are named as such: nothing but faults comes out."""
    raw = bytearray(archive([member("a", b"1" * 600), member("b" * 150, b"2"), member("ü")]))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as scratch:
        found = put(Path(scratch), bytes(raw), INDEX)
        facts = read_layer(Path(scratch, found["digest"][7:]), compressed=compressed)
        assert facts.digest == found["digest"][7:]
        assert all(fault.isprintable() for fault in (*facts.faults, *facts.format_faults))

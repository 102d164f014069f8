"""Writing layouts: what appears, what is kept, and what is left when something fails."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edgebuild.errors import ImageError, ToolError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.check import check_layout
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Role
from edgebuild.oci.layout import LayoutSink, read_layout
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import SignatureSink, fallback_tag
from tests.unit.oci.making import DictSeals, HookProgress, entries, files_of, fill, sink_of

REFERENCE = Reference.parse("registry.example.com/acme/llm:1")


# The type checker compares the sink with both protocols.
_CONFORMS: type[SignatureSink] = LayoutSink


def test_a_build_is_written_and_read_back(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "deep/er/build"
    with sink_of(out, reference=REFERENCE) as sink:
        index = fill(sink, tmp_path, model=model)
    assert check_layout(out) == ()
    assert entries(out) == [
        ("1", "registry.example.com/acme/llm:1"),
        ("1-pi4", "registry.example.com/acme/llm:1-pi4"),
        ("1-x86", "registry.example.com/acme/llm:1-x86"),
    ]
    read = read_layout(out).index()
    assert read.raw == index.raw
    for image, again in zip(index.images, read.images, strict=True):
        assert (again.profile, again.platform, again.manifest, again.config) == (
            image.profile,
            image.platform,
            image.manifest,
            image.config,
        )
        assert [(x.role, x.digest, x.diff_id, x.media_type, x.size_bytes) for x in again.layers] == [
            (x.role, x.digest, x.diff_id, x.media_type, x.size_bytes) for x in image.layers
        ]
    assert [layer.role for layer in read.images[0].layers] == [Role.MODEL, Role.SERVER, Role.CONFIG]


def test_the_same_build_gives_the_same_files(tmp_path: Path, model: Path) -> None:
    for name in ("one", "two"):
        with sink_of(tmp_path / name, reference=REFERENCE) as sink:
            fill(sink, tmp_path, model=model)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_blobs_may_be_put_from_two_threads(tmp_path: Path) -> None:
    met = threading.Barrier(2, timeout=30)
    found: dict[bytes, Digest] = {}

    def meet(*_: object) -> None:
        with suppress(threading.BrokenBarrierError):
            met.wait()

    def put(data: bytes) -> None:
        path = tmp_path / data.decode()
        path.write_bytes(data)
        found[data] = sink.put_blob(Blob.of_file(path), digest=None, title=data.decode())

    with sink_of(tmp_path / "out", progress=HookProgress(meet)) as sink:
        threads = [threading.Thread(target=put, args=(data,)) for data in (b"one", b"another")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Both copies were half done at one time.
        assert not met.broken
        assert found == {data: Digest.of(data) for data in (b"one", b"another")}
        for data, digest in found.items():
            assert (tmp_path / "out/blobs/sha256" / digest.hex).read_bytes() == data
        assert len(list((tmp_path / "out/blobs/sha256").iterdir())) == 2


def test_a_sink_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20 << 20))
    sink: LayoutSink

    def stop(*_: object) -> None:
        sink.stop()

    with (
        pytest.raises(ToolError, match="stopped"),
        sink_of(tmp_path / "out", progress=HookProgress(stop)) as sink,
    ):
        sink.put_blob(Blob.of_file(tmp_path / "large"), digest=None, title="large")
    assert not (tmp_path / "out").exists()


def test_without_a_tag_the_index_still_stands_in_index_json(tmp_path: Path, model: Path) -> None:
    with sink_of(tmp_path / "out") as sink:
        index = fill(sink, tmp_path, model=model, tag="")
    assert entries(tmp_path / "out") == [("", "")]
    assert read_layout(tmp_path / "out").main().digest == index.digest
    assert check_layout(tmp_path / "out") == ()


def test_what_is_there_is_not_copied_again(tmp_path: Path, model: Path) -> None:
    seals = DictSeals()
    first, second = HookProgress(), HookProgress()
    for progress in (first, second):
        with sink_of(tmp_path / "out", progress=progress, seals=seals) as sink:
            fill(sink, tmp_path, model=model)
    assert "model demo.gguf" in first.titles
    assert second.titles == []


def test_a_sealed_blob_is_not_even_hashed(tmp_path: Path, model: Path) -> None:
    """Told apart by a seal that lies: the blob's damage goes unnoticed only if nobody reads it."""
    seals = DictSeals()
    with sink_of(tmp_path / "out", seals=seals) as sink:
        index = fill(sink, tmp_path, model=model)
    digest = index.images[0].layers[0].digest
    blob = tmp_path / "out/blobs/sha256" / digest.hex
    with blob.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    progress = HookProgress()
    seals.remember_digest(blob, "file", digest)
    with sink_of(tmp_path / "out", seals=seals, progress=progress) as sink:
        fill(sink, tmp_path, model=model)
    assert progress.titles == []


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"x" + raw[1:]], ids=["size", "bytes"])
def test_a_damaged_blob_is_replaced(tmp_path: Path, model: Path, damage: Callable[[bytes], bytes]) -> None:
    seals = DictSeals()
    with sink_of(tmp_path / "out", seals=seals) as sink:
        index = fill(sink, tmp_path, model=model)
    for path in (tmp_path / "out/blobs/sha256").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert check_layout(tmp_path / "out")
    with sink_of(tmp_path / "out", seals=seals) as sink:
        fill(sink, tmp_path, model=model)
    assert check_layout(tmp_path / "out") == ()
    assert read_layout(tmp_path / "out").index().raw == index.raw


def test_blobs_that_nothing_refers_to_go(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    with sink_of(out) as sink:
        fill(sink, tmp_path, model=model)
    (out / "blobs/sha256" / ("0" * 64)).write_bytes(b"left over")
    (out / "blobs/sha256/.edgebuild-blob").write_bytes(b"half a blob of a killed build")
    model.write_bytes(b"another model")
    with sink_of(out) as sink:
        fill(sink, tmp_path, model=model, tag="2", profiles=("pi4",))
    assert check_layout(out) == ()
    assert [name for name, _ in entries(out)] == ["2", "2-pi4"]
    assert len(list((out / "blobs/sha256").iterdir())) == 6


def test_extending_keeps_what_is_there(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    with sink_of(out, reference=REFERENCE) as sink:
        index = fill(sink, tmp_path, model=model)
    before = entries(out)
    raw = signature(index.digest)
    with sink_of(out, extend=True) as sink:
        assert sink.get_manifest("1") == index.raw
        assert sink.get_manifest(str(index.digest)) == index.raw
        assert sink.get_manifest("nothing") is None
        assert sink.get_manifest(f"sha256:{'0' * 64}") is None
        sink.put_blob(Blob.of_bytes(b"{}"), digest=None, title="empty")
        sink.put_referrer(raw, descriptor_of(raw), index.digest)
    assert entries(out) == [*before, (fallback_tag(index.digest), "")]
    assert check_layout(out) == ()
    assert read_layout(out).main().digest == index.digest
    with sink_of(out, extend=True) as sink:
        other = signature(index.digest, name="other")
        sink.put_referrer(other, descriptor_of(other), index.digest)
    assert entries(out) == [*before, (fallback_tag(index.digest), "")]
    listed = read_layout(out).find(fallback_tag(index.digest))
    assert [child.digest for child in read_layout(out).children(listed)] == [Digest.of(raw), Digest.of(other)]
    assert check_layout(out) == ()


def signature(subject: Digest, *, name: str = "one") -> bytes:
    empty = Descriptor(media_type=media.EMPTY, digest=Digest.of(b"{}"), size_bytes=2).to_json()
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "artifactType": "application/vnd.example",
            "config": empty,
            "layers": [empty],
            "subject": {"mediaType": media.INDEX, "digest": str(subject), "size": 1},
            "annotations": {"name": name},
        }
    ).encode()


def descriptor_of(raw: bytes) -> Descriptor:
    return Descriptor(
        media_type=media.MANIFEST,
        digest=Digest.of(raw),
        size_bytes=len(raw),
        artifact_type="application/vnd.example",
    )


def test_a_tag_moves(tmp_path: Path) -> None:
    with sink_of(tmp_path / "out") as sink:
        sink.put_blob(Blob.of_bytes(b"{}"), digest=None, title="empty")
        subject = Digest.of(b"")
        for name in ("one", "two"):
            raw = signature(subject, name=name)
            sink.put_manifest(raw, descriptor_of(raw))
            sink.tag(descriptor_of(raw), "latest")
    layout = read_layout(tmp_path / "out")
    assert layout.find("latest").digest == Digest.of(signature(subject, name="two"))
    assert len(layout.entries) == 1
    assert not (tmp_path / "out/blobs/sha256" / Digest.of(signature(subject, name="one")).hex).exists()


def test_a_manifest_without_its_blobs_is_never_named(tmp_path: Path) -> None:
    raw = signature(Digest.of(b""))
    with pytest.raises(ImageError, match="is missing"), sink_of(tmp_path / "out") as sink:
        sink.put_manifest(raw, descriptor_of(raw))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="does not describe"), sink_of(tmp_path / "out") as sink:
        sink.put_manifest(raw + b" ", descriptor_of(raw))


def test_a_wrong_digest_is_refused(tmp_path: Path, model: Path) -> None:
    with (
        pytest.raises(ImageError, match=r"model has the digest .* instead of"),
        sink_of(tmp_path / "out") as sink,
    ):
        sink.put_blob(Blob.of_file(model), digest=Digest.of(b"other"), title="model")
    assert not (tmp_path / "out").exists()


def test_find_names_the_tags(tmp_path: Path, model: Path) -> None:
    with sink_of(tmp_path / "out") as sink:
        fill(sink, tmp_path, model=model)
    with pytest.raises(ImageError, match="holds no '2'") as caught:
        read_layout(tmp_path / "out").find("2")
    assert caught.value.hint == "tags there: 1, 1-pi4, 1-x86"

"""Writing layouts: what appears, what is kept, and what is left when something fails."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgebuild.errors import EdgebuildError, ImageError, ToolError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.check import check_layout
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Role
from edgebuild.oci.layout import LayoutSink, read_layout
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import SignatureSink, fallback_tag
from edgebuild.progress import SilentProgress
from tests.support.fixtures import Peers
from tests.unit.oci.making import DictSeals, HookProgress, files_of, fill

REFERENCE = Reference.parse("registry.example.com/acme/llm:1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(10 << 20))
    return path


# The type checker compares the sink with both protocols.
_CONFORMS: type[SignatureSink] = LayoutSink


def sink_of(path: Path, **settings: object) -> LayoutSink:
    return LayoutSink(path, **{"progress": SilentProgress(), **settings})  # type: ignore[arg-type]


def entries(path: Path) -> list[tuple[str, str]]:
    annotations = [entry.annotations for entry in read_layout(path).entries]
    return [(each.get(media.REF_NAME, ""), each.get("io.containerd.image.name", "")) for each in annotations]


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


class LaterStepError(Exception):
    """Any error of a later step."""


def build_and_fail(out: Path, scratch: Path, model: Path, later: Callable[[], object]) -> None:
    with sink_of(out) as sink:
        fill(sink, scratch, model=model, tag="2")
        later()


def fail() -> None:
    raise LaterStepError


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_build_leaves_a_folder_as_it_was(tmp_path: Path, model: Path, exists: bool) -> None:
    out = tmp_path / "new/build"
    if exists:
        out.mkdir(parents=True)
        (out / "notes.txt").write_text("mine")
    with pytest.raises(LaterStepError):
        build_and_fail(out, tmp_path, model, fail)
    assert (tmp_path / "new").exists() == exists
    assert not exists or files_of(out) == {"notes.txt": b"mine"}


def test_a_failed_build_leaves_the_previous_layout(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    with sink_of(out) as sink:
        fill(sink, tmp_path, model=model)
    before = files_of(out)
    model.write_bytes(os.urandom(9 << 20))
    with pytest.raises(LaterStepError):
        build_and_fail(out, tmp_path, model, fail)
    assert files_of(out) == before


def test_an_interrupt_while_copying(tmp_path: Path, model: Path) -> None:
    def interrupt(title: str, total: int) -> None:
        if title == "model demo.gguf" and total > 2 << 20:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        sink_of(tmp_path / "out", progress=HookProgress(interrupt)) as sink,
    ):
        fill(sink, tmp_path, model=model)
    assert not (tmp_path / "out").exists()


def test_one_build_at_a_time(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    with sink_of(out) as sink:
        with pytest.raises(ToolError, match="another build is writing to"), sink_of(out):
            pass
        fill(sink, tmp_path, model=model)
    assert check_layout(out) == ()


@pytest.mark.parametrize("name", ["index.json", "blobs"])
def test_a_folder_with_conflicting_names_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ImageError, match=f"holds {name} but is no image layout"), sink_of(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_with_other_files_is_used_and_they_stay(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README").write_text("mine")
    with sink_of(out) as sink:
        fill(sink, tmp_path, model=model)
    assert (out / "README").read_text() == "mine"
    assert check_layout(out) == ()


def test_a_layout_of_others_is_not_replaced(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    with sink_of(out) as sink:
        fill(sink, tmp_path, model=model)
    document = json.loads((out / "index.json").read_bytes())
    del document["annotations"]
    (out / "index.json").write_text(json.dumps(document))
    before = files_of(out)
    with pytest.raises(ImageError, match="edgebuild did not write"), sink_of(out):
        pass
    assert files_of(out) == before
    with sink_of(out, extend=True):
        pass
    assert check_layout(out) == ()


def test_another_version_of_the_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(ImageError, match=r"layout version '2\.0\.0' is not '1\.0\.0'"), sink_of(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["oci-layout"]


def test_a_broken_index_json_is_replaced_but_not_extended(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "oci-layout").touch()
    (out / "index.json").touch()
    with pytest.raises(ImageError, match="is not JSON"), sink_of(out, extend=True):
        pass
    with sink_of(out) as sink:
        fill(sink, tmp_path, model=model)
    assert check_layout(out) == ()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ToolError, match="cannot be written to"), sink_of(path):
            pass


@contextmanager
def small_disk(folder: Path, peers: Peers, *, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        peers.missing(f"a small tmpfs cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size_kib", [8, 40, 4096, 10240 + 16, 10240 + 40])
def test_a_full_disk_leaves_nothing(tmp_path: Path, model: Path, peers: Peers, size_kib: int) -> None:
    """Sizes at which the marker, a blob, the model and the last files no longer fit."""
    with small_disk(tmp_path / "disk", peers, options=f"size={size_kib}k") as disk:
        out = disk / "a/build"
        with pytest.raises(ToolError, match="no space left in") as caught, sink_of(out) as sink:
            fill(sink, tmp_path, model=model)
        assert "--output" in caught.value.hint
        assert list(disk.iterdir()) == []


def test_a_disk_that_is_full_at_the_last_step(tmp_path: Path, model: Path, peers: Peers) -> None:
    with small_disk(tmp_path / "disk", peers, options="size=24m") as disk:
        out = disk / "build"
        with sink_of(out) as sink:
            fill(sink, tmp_path, model=model)
        before = files_of(out)
        model.write_bytes(os.urandom(9 << 20))
        with pytest.raises(ToolError, match=r"no space left in .* for index\.json"):
            build_and_fail(out, tmp_path, model, lambda: fill_up(disk / "filler"))
        (disk / "filler").unlink()
        assert files_of(out) == before
        assert check_layout(out) == ()


def fill_up(path: Path) -> None:
    def write_on(file: io.FileIO, size_bytes: int) -> None:
        while True:
            file.write(bytes(size_bytes))

    with io.FileIO(path, "w") as file:
        for size_bytes in (1 << 20, 4096):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                write_on(file, size_bytes)


def test_a_read_only_disk(tmp_path: Path, model: Path, peers: Peers) -> None:
    with small_disk(tmp_path / "disk", peers, options="size=24m") as disk:
        with sink_of(disk / "build") as sink:
            fill(sink, tmp_path, model=model)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for name in ("build", "new"):
            with (
                pytest.raises(ToolError, match=r"cannot be written to .*Read-only file system"),
                sink_of(disk / name),
            ):
                pass
        assert check_layout(disk / "build") == ()


CHILD = """
import sys
from pathlib import Path
from edgebuild.oci.layout import LayoutSink
from tests.unit.oci.making import HookProgress, fill
def tell(title, total):
    print(title, flush=True)
with LayoutSink(Path(sys.argv[1]), progress=HookProgress(tell)) as sink:
    fill(sink, Path(sys.argv[2]), model=Path(sys.argv[3]), tag="2")
    print("filled", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("lines", [1, 4, 12, None])
@pytest.mark.parametrize("exists", [False, True])
def test_a_killed_build(tmp_path: Path, model: Path, lines: int | None, exists: bool) -> None:
    """Killed after so many steps: the previous layout still holds, and the next build works."""
    out = tmp_path / "out"
    if exists:
        with sink_of(out) as sink:
            fill(sink, tmp_path, model=model)
        model.write_bytes(os.urandom(10 << 20))
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, out, tmp_path, model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join([*sys.path, os.fspath(Path.cwd())])},
    ) as child:
        assert child.stdout is not None
        seen = 0
        for line in child.stdout:
            seen += 1
            if seen == lines or line == b"filled\n":
                break
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert seen >= (lines or 1)
    if exists:
        old = read_layout(out)
        assert [entry.annotations[media.REF_NAME] for entry in old.entries] == ["1", "1-pi4", "1-x86"]
        assert old.reachable()
    with sink_of(out) as sink:
        fill(sink, tmp_path, model=model, tag="3")
    assert check_layout(out) == ()
    assert [name for name, _ in entries(out)] == ["3", "3-pi4", "3-x86"]


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no marker": (lambda out: (out / "oci-layout").unlink(), "is not an OCI image layout: oci-layout"),
    "no index.json": (lambda out: (out / "index.json").unlink(), "index.json cannot be read"),
    "not JSON": (lambda out: (out / "index.json").write_text("{"), "index.json is not JSON"),
    "not an object": (lambda out: (out / "index.json").write_text("[]"), "is not a JSON object"),
    "deep": (lambda out: (out / "index.json").write_text("[" * 100_000), "is not JSON"),
    "no manifests": (lambda out: (out / "index.json").write_text("{}"), "no list 'manifests'"),
    "no descriptor": (
        lambda out: (out / "index.json").write_text(
            '{"manifests":[{"mediaType":"a","digest":"md5:1","size":1}]}'
        ),
        "is not a sha256 digest",
    ),
    "blob missing": (lambda out: largest(out).unlink(), "is missing"),
    "blob short": (lambda out: os.truncate(largest(out), 5), "bytes instead of"),
    "manifest changed": (
        lambda out: [
            path.write_bytes(path.read_bytes().replace(b"2", b"3"))
            for path in (out / "blobs/sha256").iterdir()
            if path != largest(out)
        ],
        "are others than its name says",
    ),
}


def largest(out: Path) -> Path:
    return max((out / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_layouts_are_explained(tmp_path: Path, model: Path, name: str) -> None:
    breakage, message = BREAKAGES[name]
    out = tmp_path / "out"
    with sink_of(out) as sink:
        fill(sink, tmp_path, model=model)
    breakage(out)
    with pytest.raises(EdgebuildError, match=message) as caught:
        read_layout(out).index()
    assert isinstance(caught.value, ImageError)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_find_names_the_tags(tmp_path: Path, model: Path) -> None:
    with sink_of(tmp_path / "out") as sink:
        fill(sink, tmp_path, model=model)
    with pytest.raises(ImageError, match="holds no '2'") as caught:
        read_layout(tmp_path / "out").find("2")
    assert caught.value.hint == "tags there: 1, 1-pi4, 1-x86"

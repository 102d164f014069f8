"""Docker archives and layouts: written here, read by the programs they are for."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from edgebuild.errors import ImageError, ToolError
from edgebuild.oci.archive import write_docker_archive
from edgebuild.oci.blob import Blob
from edgebuild.oci.check import check_layout
from edgebuild.oci.digest import Digest
from edgebuild.oci.image import Image
from edgebuild.oci.layer import Layer, Role
from edgebuild.oci.layout import LayoutSink, read_layout
from edgebuild.oci.platform import LINUX_AMD64
from edgebuild.oci.tar import bytes_layer, model_tar, tree_layer
from edgebuild.progress import SilentProgress
from tests.support.peers.docker import DockerDaemon
from tests.support.peers.tool import Tool
from tests.unit.oci.making import HookProgress, fill, image_of


def archive_of(image: Image, *, names: tuple[str, ...] = ("acme/llm:pi4",)) -> bytes:
    out = io.BytesIO()
    write_docker_archive(image, out, names=names, progress=SilentProgress())
    return out.getvalue()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF" * 1_000_000)
    with LayoutSink(tmp_path / "out", progress=SilentProgress()) as sink:
        fill(sink, tmp_path, model=model, profiles=("x86",))
    return read_layout(tmp_path / "out").index().images[0]


def test_the_archive_lists_config_and_layers(image: Image) -> None:
    raw = archive_of(image)
    assert raw == archive_of(image)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        contents = {info.name: archive.extractfile(info) for info in archive}
        listing = json.load(contents["manifest.json"])  # type: ignore[arg-type]
        (described,) = listing
        assert described["RepoTags"] == ["acme/llm:pi4"]
        assert described["Config"] == f"{image.config_digest.hex}.json"
        assert contents[described["Config"]].read() == image.config  # type: ignore[union-attr]
        assert [Path(name).suffixes for name in described["Layers"]] == [
            [".tar"],
            [".tar", ".gz"],
            [".tar", ".gz"],
        ]
        for name, layer in zip(described["Layers"], image.layers, strict=True):
            digest = hashlib.file_digest(contents[name], "sha256").hexdigest()  # type: ignore[arg-type]
            assert digest == layer.digest.hex
        assert set(contents) == {"manifest.json", described["Config"], *described["Layers"]}


def test_a_layer_that_comes_twice_is_written_once(tmp_path: Path, image: Image) -> None:
    twice = image_of("x86", (*image.layers, image.layers[-1]))
    raw = archive_of(twice)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert len(archive.getnames()) == len(set(archive.getnames())) == 5


def test_progress_reaches_the_total(image: Image) -> None:
    told: list[int] = []
    progress = HookProgress(lambda _, total: told.append(total))
    write_docker_archive(image, io.BytesIO(), names=(), progress=progress)
    assert told[-1] == len(image.config) + sum(layer.size_bytes for layer in image.layers)


def test_damaged_and_missing_layers_are_errors(tmp_path: Path, image: Image) -> None:
    model = tmp_path / "out/blobs/sha256" / image.layers[0].digest.hex
    raw = model.read_bytes()
    model.write_bytes(b"x" + raw[1:])
    with pytest.raises(ImageError, match="are others than its name says"):
        archive_of(image)
    model.write_bytes(raw[:-1])
    with pytest.raises(ImageError, match="a file changed while it was read"):
        archive_of(image)
    model.unlink()
    with pytest.raises(ToolError, match="cannot be read: No such file"):
        archive_of(image)


@pytest.fixture
def runnable(tmp_path: Path, busybox_amd64: Path) -> Image:
    """An image that runs: busybox, and names of every kind."""
    tree = tmp_path / "root"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(busybox_amd64.read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    (tree / "tmp").mkdir()
    (tree / ("l" * 120)).write_bytes(b"long")
    (tree / "ü").symlink_to("tmp")
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF" * 1_000_000)
    framed = model_tar(model, "demo.gguf")
    bottom = framed.layer(Digest.of(framed.blob.read()))
    rootfs = tree_layer(tree, role=Role.ROOTFS, prefix="", destination=tmp_path / "rootfs.tar.gz")
    config = bytes_layer({"/etc/passwd": b"edge:x:10001:10001::/:/bin/sh\n"}, role=Role.CONFIG)
    return image_of("x86", (bottom, rootfs, config))


SCRIPT = "; ".join(
    f"busybox {command}"
    for command in (
        "ls -ld /bin /models/demo.gguf /tmp /ü",
        "cat /l*",
        "echo",
        "id -u",
        "sha256sum /models/demo.gguf",
    )
)


@pytest.mark.peers
def test_docker_loads_and_runs_it(dockerd: DockerDaemon, runnable: Image) -> None:
    dockerd.docker("load", stdin=archive_of(runnable, names=("edgebuild.test/archive:1",)), timeout_s=120)
    name = "edgebuild.test/archive:1"
    try:
        found = dockerd.docker("image", "inspect", "--format", "{{.Id}} {{.Os}}/{{.Architecture}}", name)
        if dockerd.version.startswith("20."):
            assert found.stdout.split()[0] == str(runnable.config_digest)
        said = dockerd.docker(
            "run",
            "--rm",
            "--read-only",
            "--network=none",
            "--entrypoint=/bin/busybox",
            name,
            "sh",
            "-c",
            SCRIPT,
        ).stdout
    finally:
        dockerd.docker("image", "rm", "-f", name, check=False)
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["drwxr-xr-x", "-rw-r--r--", "drwxrwxrwt", "lrwxrwxrwx"]
    assert lines[4:6] == ["long", "10001"]
    assert lines[6].split()[0] == hashlib.sha256(b"GGUF" * 1_000_000).hexdigest()


@pytest.mark.peers
def test_a_size_in_a_pax_record_is_followed_by_docker(
    dockerd20: DockerDaemon, runnable: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form of models beyond 8 GiB, tried on a small one with the archive/tar of Docker 20.10."""
    monkeypatch.setattr("edgebuild.oci.tar._OCTAL_SIZE_LIMIT", 1)
    framed = model_tar(tmp_path / "model.gguf", "demo.gguf")
    assert b"size=4000000" in framed.before
    bottom = framed.layer(Digest.of(framed.blob.read()))
    monkeypatch.undo()
    name = "edgebuild.test/pax:1"
    image = image_of("x86", (bottom, *runnable.layers[1:]))
    dockerd20.docker("load", stdin=archive_of(image, names=(name,)), timeout_s=120)
    try:
        said = dockerd20.docker(
            "run", "--rm", "--network=none", name, "sha256sum", "/models/demo.gguf"
        ).stdout
    finally:
        dockerd20.docker("image", "rm", "-f", name, check=False)
    assert said.split()[0] == hashlib.sha256(b"GGUF" * 1_000_000).hexdigest()


def layout_of(image: Image, path: Path) -> Path:
    with LayoutSink(path, progress=SilentProgress()) as sink:
        for digest, blob in image.blobs().items():
            sink.put_blob(blob, digest=digest, title=digest.short)
        sink.put_manifest(image.manifest, image.descriptor)
        sink.tag(image.descriptor, "1")
    return path


@pytest.mark.peers
def test_skopeo_and_crane_read_the_layout(runnable: Image, tmp_path: Path, skopeo: Tool, crane: Tool) -> None:
    layout = layout_of(runnable, tmp_path / "layout")
    raw = skopeo.run("inspect", "--raw", f"oci:{layout}:1").stdout.encode()
    assert raw == runnable.manifest
    # Without --preserve-digests skopeo compresses the model.
    skopeo.run(
        "--insecure-policy", "copy", "--preserve-digests", f"oci:{layout}:1", f"oci:{tmp_path / 'copy'}:1"
    )
    copied = read_layout(tmp_path / "copy")
    assert copied.find("1").digest == runnable.digest
    validated = crane.run("validate", "--fast", f"--tarball={write(runnable, tmp_path / 'image.tar')}")
    assert "PASS" in validated.stdout + validated.stderr


def write(image: Image, path: Path) -> Path:
    path.write_bytes(archive_of(image))
    return path


def test_an_image_with_a_literal_layer(tmp_path: Path) -> None:
    """Layers need not be files."""
    layer = bytes_layer({"a": b"1"}, role=Role.CONFIG)
    assert isinstance(layer, Layer)
    assert isinstance(layer.blob, Blob)
    alone = image_of("x86", (layer,), platform=LINUX_AMD64)
    assert [str(fault) for fault in check_layout(layout_of(alone, tmp_path / "layout"))] == [
        "index.json: names no index of images",
        "index.json entry 0: is an image that no index holds",
    ]

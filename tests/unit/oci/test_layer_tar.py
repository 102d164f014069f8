"""Layers as archives: what is in them, byte for byte, and what never gets in."""

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebuild.errors import ImageError, ToolError
from edgebuild.oci import tar
from edgebuild.oci.check_layer import read_layer
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Layer, Role
from edgebuild.oci.tar import LAYER_EPOCH_S, bytes_layer, file_frame, model_tar, tree_layer, write_tree_tar
from tests.unit.oci.making import write_tree

GOLDEN = Path(__file__).parents[2] / "golden/oci/diff_ids.json"
LONG = "l" * 101
TREES: dict[str, tuple[str, dict[str, bytes | str | None]]] = {
    "empty": ("", {}),
    "empty below a prefix": ("opt/edge/deps", {}),
    "one file": ("", {"a": b"1"}),
    "order": ("", {"a/x": b"", "a-b": b"", "a.b": b"", "B": b"", "ä": b""}),
    "special folders": ("", {"tmp": None, "var/tmp": None, "root": None, "opt/tmp": None}),
    "links": ("usr", {"bin/python3": "python3.13", "dangling": "/nowhere", "dots": "./a//b"}),
    "long names": ("", {f"{LONG}/{LONG}": b"1", "link": LONG, "d" * 100 + "/x": b""}),
    "names beyond ASCII": ("", {"日本/ü": b"1", "leer zeichen": "日本"}),
    "sizes around a block": ("", {str(size): bytes(size) for size in (511, 512, 513, 1 << 20)}),
}


def write(tmp_path: Path, tree: Path, prefix: str = "") -> Layer:
    return tree_layer(tree, role=Role.SERVER, prefix=prefix, destination=tmp_path / "layer.tar.gz")


def members(layer: Layer) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer.blob.read()), encoding="utf-8") as archive:
        return archive.getmembers()


@pytest.mark.parametrize("name", TREES)
def test_golden_diff_ids(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    prefix, contents = TREES[name]
    layer = write(tmp_path, write_tree(tmp_path / "tree", contents), prefix)
    golden = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
    if pytestconfig.getoption("--update-golden", default=False):
        golden[name] = str(layer.diff_id)
        GOLDEN.write_text(json.dumps(golden, indent=2, sort_keys=True) + "\n", "utf-8")
    assert golden[name] == str(layer.diff_id), "\n".join(
        f"{m.name} {m.mode:o} {m.size}" for m in members(layer)
    )


@pytest.mark.parametrize("name", TREES)
def test_both_identities_are_of_the_bytes_and_the_checker_agrees(name: str, tmp_path: Path) -> None:
    prefix, contents = TREES[name]
    layer = write(tmp_path, write_tree(tmp_path / "tree", contents), prefix)
    raw = layer.blob.read()
    assert layer.digest == Digest.of(raw)
    assert layer.diff_id == Digest.of(gzip.decompress(raw))
    facts = read_layer(tmp_path / "layer.tar.gz", compressed=True)
    assert (facts.faults, facts.format_faults) == ((), ())
    assert (facts.digest, facts.diff_id) == (layer.digest.hex, layer.diff_id.hex)
    out = io.BytesIO()
    write_tree_tar(tmp_path / "tree", prefix, out)
    assert Digest.of(out.getvalue()) == layer.diff_id


@pytest.mark.parametrize("name", TREES)
def test_gnu_tar_extracts_the_same_tree(name: str, tmp_path: Path) -> None:
    _, contents = TREES[name]
    tree = write_tree(tmp_path / "tree", contents)
    write(tmp_path, tree)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xpzf", tmp_path / "layer.tar.gz", "-C", out], check=True)
    assert snapshot(out) == snapshot(tree)


def snapshot(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)  # noqa: PTH115 - Path would rewrite "./a//b"
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def test_entries_are_normalised(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree",
        {"run": b"x", "data": b"y", "d/e": b"", "tmp": None, "root": None, "var/lib/edge": None},
    )
    (tree / "run").chmod(0o6711)
    (tree / "data").chmod(0o602)
    (tree / "d").chmod(0o2700)
    os.utime(tree / "data", (1, 1))
    found = {member.name: member for member in members(write(tmp_path, tree))}
    assert {name: f"{member.mode:o}" for name, member in found.items()} == {
        "d": "755",
        "d/e": "644",
        "data": "644",
        "root": "700",
        "run": "755",
        "tmp": "1777",
        "var": "755",
        "var/lib": "755",
        "var/lib/edge": "1777",
    }
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in found.values()} == {
        (LAYER_EPOCH_S, 0, 0, "", "")
    }


def test_names_are_sorted_bytewise_with_their_parents(tmp_path: Path) -> None:
    layer = write(
        tmp_path, write_tree(tmp_path / "t", {"a/x": b"", "a-b": b"", "B": b"", "ä": b""}), "/opt/edge/"
    )
    assert [member.name for member in members(layer)] == [
        "opt",
        "opt/edge",
        "opt/edge/B",
        "opt/edge/a",
        "opt/edge/a-b",
        "opt/edge/a/x",
        "opt/edge/ä",
    ]


def test_hard_links_do_not_matter(tmp_path: Path) -> None:
    linked = write_tree(tmp_path / "linked", {"a": b"same"})
    os.link(linked / "a", linked / "b")
    copied = write_tree(tmp_path / "copied", {"b": b"same", "a": b"same"})
    assert write(tmp_path, linked).diff_id == write(tmp_path, copied).diff_id


def test_gzip_header_holds_neither_name_nor_time(tmp_path: Path) -> None:
    raw = write(tmp_path, write_tree(tmp_path / "tree", {"a": b"1"})).blob.read()
    assert raw[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


def test_surroundings_do_not_matter(tmp_path: Path) -> None:
    """Another umask, locale, time zone, folder and order of creation: the same bytes."""
    script = (
        "import os, sys; from pathlib import Path; from edgebuild.oci.layer import Role\n"
        "from edgebuild.oci.tar import tree_layer\n"
        "os.umask(int(sys.argv[1], 8)); tree = Path(sys.argv[2])\n"
        "layer = tree_layer(tree, role=Role.SERVER, prefix='opt', destination=tree.parent / 'out')\n"
        "print(sys.getfilesystemencoding(), layer.digest, layer.diff_id)\n"
    )
    said = []
    names = ["b", "ä", "a", "Z"]
    for number, (umask, environment) in enumerate(
        (
            ("022", {"LC_ALL": "C.UTF-8", "TZ": "UTC"}),
            ("077", {"LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1"}),
            ("000", {"LC_ALL": "POSIX", "PYTHONUTF8": "1", "SOURCE_DATE_EPOCH": "5"}),
        )
    ):
        names = names[1:] + names[:1]
        contents: dict[str, bytes | str | None] = {f"{name}/ü": name.encode() for name in names}
        tree = write_tree(tmp_path / str(number) / "träe", {**contents, "link": "ü"})
        done = subprocess.run(
            [sys.executable, "-c", script, umask, tree],
            env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            check=True,
            capture_output=True,
            text=True,
        )
        said.append(done.stdout.split())
    assert {encoding for encoding, *_ in said} == {"utf-8", "ascii"}
    assert len({tuple(digests) for _, *digests in said}) == 1


@pytest.fixture
def odd_tree(tmp_path: Path) -> Iterator[Path]:
    tree = tmp_path / "odd"
    tree.mkdir()
    yield tree
    shutil.rmtree(tree)


def test_pipes_sockets_and_devices_are_refused(odd_tree: Path, tmp_path: Path) -> None:
    os.mkfifo(odd_tree / "pipe")
    with pytest.raises(ImageError, match="pipe is a device, pipe or socket"):
        write(tmp_path, odd_tree)
    (odd_tree / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(odd_tree / "socket"))
        with pytest.raises(ImageError, match="socket is a device, pipe or socket"):
            write(tmp_path, odd_tree)
    (odd_tree / "socket").unlink()
    if os.geteuid() == 0:
        os.mknod(odd_tree / "null", 0o020666, os.makedev(1, 3))
        with pytest.raises(ImageError, match="null is a device, pipe or socket"):
            write(tmp_path, odd_tree)
    assert not list(tmp_path.glob(".layer*"))


def test_names_that_an_archive_cannot_hold_are_refused(odd_tree: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(odd_tree) + b"/\xff")).write_bytes(b"")
    with pytest.raises(ImageError, match="is not UTF-8"):
        write(tmp_path, odd_tree)


def test_whiteouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="would delete files of lower layers"):
        write(tmp_path, write_tree(tmp_path / "tree", {".wh.a": b""}))


def test_a_layer_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"a": b"1"})
    with pytest.raises(ToolError, match=r"cannot be written to .*No such file"):
        tree_layer(tree, role=Role.SERVER, prefix="", destination=tmp_path / "missing/layer")
    with pytest.raises(ToolError, match="nowhere cannot be read"):
        write(tmp_path, tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]


def test_bytes_layer_is_the_layer_of_the_same_tree(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree", {"etc/edgebuild/runtime.json": b"{}", "etc/edgebuild/README.md": b"#"}
    )
    small = bytes_layer(
        {"/etc/edgebuild/runtime.json": b"{}", "etc/edgebuild/README.md": b"#"}, role=Role.SERVER
    )
    large = write(tmp_path, tree)
    assert (small.digest, small.diff_id, small.size_bytes) == (large.digest, large.diff_id, large.size_bytes)


@pytest.mark.parametrize("name", ["", "/", "a/../b", "../a", "a//b", "./a", "a\0b"])
def test_paths_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match="is not a path in an image"):
        bytes_layer({name: b""}, role=Role.CONFIG)


def test_a_file_below_a_file_is_refused() -> None:
    with pytest.raises(ImageError, match="/a/b lies below /a, which is no directory"):
        bytes_layer({"a": b"", "a/b": b""}, role=Role.CONFIG)


def test_model_tar_frames_the_file(tmp_path: Path) -> None:
    model = tmp_path / "any name"
    model.write_bytes(b"GGUF" * 1000)
    model.chmod(0o4000)
    framed = model_tar(model, "demo.gguf")
    raw = framed.blob.read()
    assert framed.name == "models/demo.gguf"
    assert raw == framed.before + model.read_bytes() + framed.after
    assert framed.blob.size_bytes == len(raw)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert [(m.name, m.mode, m.isdir()) for m in archive] == [
            ("models", 0o755, True),
            ("models/demo.gguf", 0o644, False),
        ]
    layer = framed.layer(Digest.of(raw))
    assert layer.diff_id == layer.digest == Digest(hashlib.sha256(raw).hexdigest())
    tree = tree_layer(
        write_tree(tmp_path / "tree", {"demo.gguf": model.read_bytes()}),
        role=Role.MODEL,
        prefix="models",
        destination=tmp_path / "layer",
    )
    assert tree.diff_id == layer.diff_id


@pytest.mark.parametrize("name", ["a/b", "", ".", ".."])
def test_model_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"")
    with pytest.raises(ImageError):
        model_tar(tmp_path / "m", name)


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="cannot be read: No such file"):
        model_tar(tmp_path / "missing", "m")
    with pytest.raises(ToolError, match="is not a regular file"):
        model_tar(tmp_path, "m")


@pytest.mark.parametrize("size_bytes", [2**33 - 1, 2**33, 2**40])
def test_sizes_beyond_eight_gibibytes(size_bytes: int, tmp_path: Path) -> None:
    model = tmp_path / "sparse"
    model.touch()
    os.truncate(model, size_bytes)
    framed = model_tar(model, "m")
    assert (b"size=" in framed.before) == (size_bytes >= 2**33)
    with tarfile.open(fileobj=io.BytesIO(framed.before)) as archive:
        assert archive.next() is not None
        member = archive.next()
    assert member is not None
    assert member.size == size_bytes
    # GNU tar looks at the header before it misses the data.
    listed = subprocess.run(["tar", "-tvf", "-"], input=framed.before, capture_output=True, check=False)
    assert f" {size_bytes} 2020-01-01" in listed.stdout.decode()


def test_a_size_in_a_pax_record_is_followed_by_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form of files beyond 8 GiB, tried on a small one: what follows is found where the record says."""
    monkeypatch.setattr(tar, "_OCTAL_SIZE_LIMIT", 1)
    header, padding = file_frame("models/m", 700)
    raw = header + b"x" * 700 + padding + b"".join(file_frame("models/n", 0)) + tar.ARCHIVE_END
    listed = subprocess.run(["tar", "-tf", "-"], input=raw, capture_output=True, check=True)
    assert listed.stdout.split() == [b"models/m", b"models/n"]
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert [(member.name, member.size) for member in archive] == [("models/m", 700), ("models/n", 0)]

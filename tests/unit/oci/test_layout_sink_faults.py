"""Writing layouts when something fails: what is left, and what is told."""

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
from edgebuild.oci.check import check_layout
from edgebuild.oci.layout import read_layout
from tests.support.fixtures import Peers
from tests.unit.oci.making import HookProgress, entries, files_of, fill, sink_of


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
from tests.unit.oci.making import HookProgress, entries, files_of, fill, sink_of
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

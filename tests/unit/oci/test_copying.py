"""Copying and hashing at once, full disks, and sources that change meanwhile."""

import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebuild.errors import ToolError
from edgebuild.oci.blob import Blob
from edgebuild.oci.copying import copy_hashed
from edgebuild.oci.digest import Digest
from tests.unit.oci.making import HookProgress

LARGE = (9 << 20) + 12_345


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "large"
    path.write_bytes(os.urandom(LARGE))
    return path


def copy(
    blob: Blob,
    out: Path,
    *,
    on_advance: Callable[[str, int], None] | None = None,
    stop: threading.Event | None = None,
) -> Digest:
    descriptor = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with HookProgress(on_advance).task("copy") as task:
            return copy_hashed(blob, descriptor, task, stop=stop)
    finally:
        os.close(descriptor)


def test_what_is_hashed_is_what_is_written(source: Path, tmp_path: Path) -> None:
    raw = b"before" + source.read_bytes() + b"between" + source.read_bytes() + b"after"
    told: list[int] = []
    found = copy(
        Blob((b"before", source, b"between", source, b"after"), len(raw)),
        tmp_path / "out",
        on_advance=lambda _, total: told.append(total),
    )
    assert (tmp_path / "out").read_bytes() == raw
    assert found == Digest.of(raw)
    assert told == sorted(told)
    assert told[-1] == len(raw)


def test_a_kernel_without_huge_pages_will_do(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No advice of this number is known, as in such a kernel: EINVAL.
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12_345)
    assert copy(Blob.of_file(source), tmp_path / "out") == Digest.of(source.read_bytes())


def test_small_and_empty_files_need_no_thread(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "empty").touch()
    blob = Blob((tmp_path / "empty", b"", tmp_path / "small"), 5)
    assert copy(blob, tmp_path / "out") == Digest.of(b"small")


def test_a_copy_that_is_stopped_ends(source: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    told: list[int] = []

    def stop_early(_: str, total: int) -> None:
        told.append(total)
        stop.set()

    with pytest.raises(ToolError, match="stopped"):
        copy(Blob.of_file(source), tmp_path / "out", on_advance=stop_early, stop=stop)
    assert told[-1] < LARGE


def test_a_full_disk_ends_the_copy(source: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        copy(Blob.of_file(source), Path("/dev/full"))


def test_a_source_that_cannot_be_read_on_is_told_with_its_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.preadv

    def break_half_way(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset >= 4 << 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", break_half_way)
    with pytest.raises(ToolError, match="large cannot be read: Input/output error"):
        copy(Blob.of_file(source), tmp_path / "out")


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"changed")


def test_a_source_that_changes_is_noticed(tmp_path: Path) -> None:
    changes: dict[str, Callable[[Path], None]] = {
        "rewritten": rewrite,
        "longer": lambda path: os.truncate(path, LARGE + 1),
        "shorter": lambda path: os.truncate(path, 5 << 20),
    }
    for name, change in changes.items():
        path = tmp_path / name
        path.write_bytes(os.urandom(LARGE))
        blob = Blob.of_file(path)

        def at_start(
            _: str, total: int, *, change: Callable[[Path], None] = change, path: Path = path
        ) -> None:
            if total <= 1 << 20:
                change(path)

        with pytest.raises(ToolError, match="changed while it was copied"):
            copy(blob, tmp_path / "out", on_advance=at_start)


def test_a_source_that_changed_since_the_blob_was_made(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"12345")
    blob = Blob.of_file(path)
    path.write_bytes(b"123")
    with pytest.raises(ToolError, match=r"small changed while it was copied: 3 bytes instead of 5"):
        copy(blob, tmp_path / "out")
    path.unlink()
    with pytest.raises(ToolError, match="small cannot be read: No such file"):
        copy(blob, tmp_path / "out")


def test_an_interrupt_stops_the_copying_thread(source: Path, tmp_path: Path) -> None:
    def interrupt(_: str, __: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(Blob.of_file(source), tmp_path / "out", on_advance=interrupt)
    assert "copy" not in {thread.name for thread in threading.enumerate()}
    assert (tmp_path / "out").stat().st_size < LARGE

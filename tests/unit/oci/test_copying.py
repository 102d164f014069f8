"""Copying and hashing at once: every way of copying, and sources that change meanwhile."""

import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebuild.errors import ToolError
from edgebuild.oci import copying
from edgebuild.oci.blob import Blob
from edgebuild.oci.copying import by_hand, by_range, by_sendfile, copy_hashed
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
    ways: tuple[copying.Way, ...] = copying.WAYS,
    on_advance: Callable[[str, int], None] | None = None,
    stop: threading.Event | None = None,
) -> Digest:
    descriptor = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with HookProgress(on_advance).task("copy") as task:
            return copy_hashed(blob, descriptor, task, ways=ways, stop=stop)
    finally:
        os.close(descriptor)


def refuse(*_: int) -> int:
    raise OSError(errno.EXDEV, "not between these")


def answer_nothing(*_: int) -> int:
    return 0


def stop_half_way(source: int, destination: int, count: int, offset: int, at: int) -> int:
    if offset >= 4 << 20:
        raise OSError(errno.EINVAL, "no more")
    return by_range(source, destination, count, offset, at)


@pytest.mark.parametrize(
    "ways",
    [
        (by_range,),
        (by_sendfile,),
        (by_hand,),
        (refuse, by_sendfile),
        (answer_nothing, refuse, by_hand),
        (stop_half_way, by_hand),
        copying.WAYS,
    ],
    ids=lambda ways: "-".join(way.__name__ for way in ways),
)
def test_every_way_copies_what_it_hashes(ways: tuple[copying.Way, ...], source: Path, tmp_path: Path) -> None:
    raw = b"before" + source.read_bytes() + b"between" + source.read_bytes() + b"after"
    told: list[int] = []
    found = copy(
        Blob((b"before", source, b"between", source, b"after"), len(raw)),
        tmp_path / "out",
        ways=ways,
        on_advance=lambda _, total: told.append(total),
    )
    assert (tmp_path / "out").read_bytes() == raw
    assert found == Digest.of(raw)
    assert told == sorted(told)
    assert told[-1] == len(raw)


@pytest.mark.parametrize("error", [errno.ENODEV, errno.EINVAL])
def test_a_file_system_that_maps_nothing_is_read_through_a_buffer(
    error: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_to_map(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(mmap, "mmap", refuse_to_map)
    raw = b"before" + source.read_bytes()
    assert copy(Blob((b"before", source), len(raw)), tmp_path / "out") == Digest.of(raw)
    assert (tmp_path / "out").read_bytes() == raw


def test_what_fails_while_mapping_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "no memory left")

    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(OSError, match="no memory left"):
        copy(Blob.of_file(source), tmp_path / "out")


def test_a_copy_that_is_shorter_than_was_told_is_noticed(source: Path, tmp_path: Path) -> None:
    def copy_less(source: int, destination: int, count: int, offset: int, at: int) -> int:
        by_hand(source, destination, count // 8, offset, at)
        return count

    with pytest.raises(OSError, match="the copy became shorter"):
        copy(Blob.of_file(source), tmp_path / "out", ways=(copy_less,))


def test_small_and_empty_files_need_no_thread(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "empty").touch()
    blob = Blob((tmp_path / "empty", b"", tmp_path / "small"), 5)
    assert copy(blob, tmp_path / "out", ways=()) == Digest.of(b"small")


def test_a_copy_that_is_stopped_ends(source: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    told: list[int] = []

    def stop_early(_: str, total: int) -> None:
        told.append(total)
        stop.set()

    with pytest.raises(ToolError, match="stopped"):
        copy(Blob.of_file(source), tmp_path / "out", on_advance=stop_early, stop=stop)
    assert told[-1] < LARGE


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_is_not_tried_another_way(error: int, source: Path, tmp_path: Path) -> None:
    def fail(*_: int) -> int:
        raise OSError(error, os.strerror(error))

    with pytest.raises(OSError, match=os.strerror(error)):
        copy(Blob.of_file(source), tmp_path / "out", ways=(fail, by_hand))


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
            copy(blob, tmp_path / "out", ways=(slow,), on_advance=at_start)


def slow(source: int, destination: int, count: int, offset: int, at: int) -> int:
    """Copy in small steps, so that the source changes before the copy is done."""
    threading.Event().wait(0.02)
    return by_hand(source, destination, min(count, 1 << 20), offset, at)


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
        copy(Blob.of_file(source), tmp_path / "out", ways=(slow,), on_advance=interrupt)
    assert "copy" not in {thread.name for thread in threading.enumerate()}
    assert (tmp_path / "out").stat().st_size < LARGE

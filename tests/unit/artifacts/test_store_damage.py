"""Entries of the store that were altered, copied or half written."""

import os
import shutil
from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from tests.unit.artifacts.entries import KEY, OTHER, write, write_one
from tests.unit.artifacts.telling import Told


def alter_bytes(folder: Path) -> None:
    (folder / "sub" / "a.txt").write_text("alphA")


def alter_bytes_keeping_the_time(folder: Path) -> None:
    path = folder / "sub" / "a.txt"
    times = path.stat()
    path.write_text("alphA")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def alter_mode(folder: Path) -> None:
    (folder / "program").chmod(0o644)


def alter_link(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("program")


def remove_file(folder: Path) -> None:
    (folder / "sub" / "a.txt").unlink()


def add_file(folder: Path) -> None:
    (folder / "sub" / "new").touch()


def replace_by_folder(folder: Path) -> None:
    (folder / "program").unlink()
    (folder / "program").mkdir()


ALTERATIONS = (
    alter_bytes,
    alter_bytes_keeping_the_time,
    alter_mode,
    alter_link,
    remove_file,
    add_file,
    replace_by_folder,
)


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_damaged_entry_is_named_and_built_anew(tmp_path: Path, alter: object) -> None:
    told = Told()
    store = Store(tmp_path, progress=told)
    folder = store.make("artifact", KEY, write)
    assert callable(alter)
    alter(folder)
    again = store.make("artifact", KEY, write)
    assert (again / "sub" / "a.txt").read_text() == "alpha"
    assert (again / "program").stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in again.rglob("*")) == ["a.txt", "link", "program", "sub"]
    assert len(told.notes) == 1
    assert KEY.short in told.notes[0]
    assert "damaged" in told.notes[0]


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_verify_names_a_damaged_entry(tmp_path: Path, alter: object) -> None:
    store = Store(tmp_path)
    folder = store.make("artifact", KEY, write)
    store.make("download", OTHER, write_one)
    assert store.verify() == ()
    assert callable(alter)
    alter(folder)
    (fault,) = store.verify()
    assert fault.startswith(f"artifact {KEY.hex}: ")
    assert store.find("artifact", KEY) is None
    assert store.find("download", OTHER) is not None
    assert store.verify() == ()


def test_copied_store_is_as_good_as_before(tmp_path: Path) -> None:
    told = Told()
    Store(tmp_path / "a").make("artifact", KEY, write)
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    for path in (tmp_path / "b").rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    store = Store(tmp_path / "b", progress=told)
    assert store.find("artifact", KEY) is not None
    assert told.notes == []
    assert store.verify() == ()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"format":99,"paths":{}}', b'{"format":1,"paths":{"a":[1]}}']
)
def test_broken_seal_means_no_entry(tmp_path: Path, raw: bytes) -> None:
    store = Store(tmp_path)
    folder = store.make("artifact", KEY, write)
    folder.with_name(folder.name + ".seal").write_bytes(raw)
    assert store.find("artifact", KEY) is None
    assert store.make("artifact", KEY, write) == folder
    assert store.find("artifact", KEY) == folder


def test_folder_without_a_seal_is_a_leftover(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.make("artifact", KEY, write)
    folder.with_name(folder.name + ".seal").unlink()
    (folder / "half").touch()
    assert store.find("artifact", KEY) is None
    store.make("artifact", KEY, write)
    assert not (folder / "half").exists()

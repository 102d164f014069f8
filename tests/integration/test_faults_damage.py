"""Damage in the store and in layouts: noticed, told, mended, never used."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.support.bench import Bench, Warm, make_bench, own_copy

LAYER = "layer.tar.gz"


def flip_byte(path: Path) -> None:
    """Change a byte in the middle, then give the file its times back: size and mtime are as before."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip_byte,
    "truncated": truncate,
    "emptied": empty,
    "removed": remove,
}


def some_file(bench: Bench, kind: str) -> Path:
    """Choose a file whose damage would end up in the image."""
    if kind == "layer":
        return bench.entry("layer", "python-deps") / LAYER
    if kind == "artifact":
        return next(path for path in sorted((bench.entry("artifact", "server") / "tree").rglob("serve.py")))
    if kind == "model":
        return next(bench.entry("model", "").iterdir())
    return next(bench.entry("download", "h11").iterdir())


def make_it_be_used(bench: Bench, kind: str) -> None:
    """See that the next build reads the entry itself, not what was made of it earlier."""
    if kind == "artifact":
        bench.forget("layer", "server")
    if kind == "download":
        bench.forget_software("python-deps")


@pytest.fixture(scope="module")
def good(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an undisturbed build."""
    bench = make_bench(warm, tmp_path_factory.mktemp("good"))
    bench.build()
    return bench.digest()


def cases() -> list[ParameterSet]:
    """Every kind with every damage; those that share no row or column are the quick ones."""
    kinds = ("artifact", "layer", "model")
    return [
        pytest.param(kind, damage, marks=() if row == column else pytest.mark.slow)
        for row, kind in enumerate(kinds)
        for column, damage in enumerate(DAMAGES)
    ]


@pytest.mark.parametrize(("kind", "damage"), cases())
def test_a_damaged_entry_is_made_anew(bench: Bench, good: str, kind: str, damage: str) -> None:
    make_it_be_used(bench, kind)
    DAMAGES[damage](own_copy(some_file(bench, kind)))
    done = bench.build()
    assert f"{kind} " in done.stderr, done.describe()
    assert "in the store is damaged" in done.stderr, done.describe()
    assert bench.digest() == good
    bench.assert_sound()


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_damaged_entries(bench: Bench, damage: str) -> None:
    damaged = []
    for kind in ("artifact", "layer", "model", "download"):
        path = own_copy(some_file(bench, kind))
        entry = next(folder for folder in path.parents if folder.parent.name == kind)
        damaged.append((f"{kind} {entry.name}: ", path.name))
        DAMAGES[damage](path)
    done = bench.command.run("cache", "verify", check=False)
    assert done.returncode == 5, done.describe()
    assert "error: 4 entries" in done.stderr, done.describe()
    assert "hint: " in done.stderr, done.describe()
    for line, (entry_name, file_name) in zip(sorted(done.stdout.splitlines()), sorted(damaged), strict=True):
        assert line.startswith(entry_name), done.describe()
        assert file_name in line, done.describe()
    # Told once; what was damaged counts as gone.
    assert bench.command.run("cache", "verify").stdout.strip() == "every entry is whole"


@pytest.mark.slow
def test_a_change_that_hides_shows_by_its_ctime(bench: Bench) -> None:
    """Same inode, size and mtime as in the seal: no program can set the time of the last change of properties."""
    layer = own_copy(some_file(bench, "layer"))
    bench.build()
    good, before = bench.digest(), layer.stat()
    shutil.rmtree(bench.layout)
    flip_byte(layer)
    after = layer.stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (
        after.st_ino,
        after.st_size,
        after.st_mtime_ns,
    )
    assert "in the store is damaged" in bench.build().stderr
    assert bench.digest() == good
    bench.assert_sound()


@pytest.mark.slow
def test_two_entries_that_changed_places(bench: Bench, good: str) -> None:
    first, second = (bench.entry("layer", name) for name in ("python-deps", "server"))
    away = first.with_name("away")
    first.rename(away)
    second.rename(first)
    away.rename(second)
    done = bench.build()
    assert done.stderr.count("in the store is damaged") == 2, done.describe()
    assert bench.digest() == good
    bench.assert_sound()


def test_two_entries_that_changed_places_with_their_seals(bench: Bench, good: str) -> None:
    bench.build()
    shutil.rmtree(bench.layout)
    first, second = (bench.entry("layer", name) for name in ("python-deps", "server"))
    for suffix in ("", ".seal"):
        away = first.with_name("away")
        (one := first.with_name(first.name + suffix)).rename(away)
        (two := second.with_name(second.name + suffix)).rename(one)
        away.rename(two)
    done = bench.build()
    assert done.stderr.count("in the store is damaged") == 2, done.describe()
    assert bench.digest() == good
    bench.assert_sound()


@pytest.mark.parametrize(
    "content", [b"", b'{"format":1,"paths":{"a":[]}}', b"[" * 100_000], ids=["empty", "odd", "deep"]
)
def test_a_seal_that_is_none(bench: Bench, good: str, content: bytes) -> None:
    entry = bench.entry("layer", "server")
    seal = entry.with_name(entry.name + ".seal")
    seal.unlink()
    seal.write_bytes(content)
    assert "in the store is damaged" in bench.build().stderr
    assert bench.digest() == good
    bench.assert_sound()


@pytest.mark.slow
def test_a_seal_that_is_gone(bench: Bench, good: str) -> None:
    entry = bench.entry("artifact", "server")
    bench.forget("layer", "server")
    entry.with_name(entry.name + ".seal").unlink()
    bench.build()
    assert bench.digest() == good
    bench.assert_sound()


def test_an_extra_file_in_an_artifact(bench: Bench, good: str) -> None:
    bench.forget("layer", "server")
    (bench.entry("artifact", "server") / "tree" / "intruder.py").write_text("raise SystemExit\n")
    done = bench.build()
    assert "does not belong there" in done.stderr, done.describe()
    assert bench.digest() == good
    bench.assert_sound()


def test_damaged_blobs_of_a_layout_are_written_anew(bench: Bench, good: str) -> None:
    bench.build()
    blobs = sorted((bench.layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    for number, damage in enumerate(DAMAGES.values()):
        damage(blobs[number])
        damage(blobs[-1 - number])
    bench.build()
    assert bench.digest() == good
    bench.assert_sound()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        *(pytest.param(one, marks=pytest.mark.slow) for one in (b"null", b'{"manifests": 7}', b"\0" * 4096)),
    ],
    ids=repr,
)
def test_a_damaged_index_of_a_layout_is_written_anew(bench: Bench, good: str, content: bytes) -> None:
    bench.build()
    (bench.layout / "index.json").write_bytes(content)
    bench.build()
    assert bench.digest() == good
    bench.assert_sound()

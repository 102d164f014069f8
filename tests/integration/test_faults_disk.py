"""Full disks: told in one line, what was there before stays good, and all goes on when there is room."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.bench import Bench, Warm, assert_failed, make_bench
from tests.support.mirror import running_mirror
from tests.support.small_disk import SmallDisk

MIB = 1 << 20
STORE_BYTES = 1200 * MIB

# What is missing from the store, and how much room there is: too little for just this.
STORE_STEPS: dict[str, tuple[tuple[tuple[str, str], ...], int]] = {
    "recipe of the dependencies": ((("artifact", "python-deps"), ("layer", "python-deps")), MIB),
    "recipe of the root file system": ((("artifact", "rootfs"), ("layer", "rootfs")), 8 * MIB),
    "seal or first file of a recipe": ((("artifact", "server"), ("layer", "server")), 0),
    "layer": ((("layer", "rootfs"),), MIB),
    "quantised model": ((("model", ""),), MIB),
}


@pytest.fixture(scope="module")
def good(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an undisturbed build."""
    bench = make_bench(warm, tmp_path_factory.mktemp("good"))
    bench.build()
    return bench.digest()


@pytest.fixture
def full_store(warm: Warm, tmp_path: Path, make_disk: Callable[[int], SmallDisk]) -> tuple[Bench, SmallDisk]:
    """A build whose store lies on a small disk, with the layout of another build where it writes to."""
    disk = make_disk(STORE_BYTES)
    bench = make_bench(warm, tmp_path / "build", store=disk.path / "store")
    bench.build("--quantization", "F16")
    return bench, disk


def snapshot(folder: Path) -> dict[str, str]:
    return {
        os.fspath(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "step",
    [pytest.param(name, marks=pytest.mark.slow if "recipe" in name else ()) for name in STORE_STEPS],
)
def test_no_room_in_the_store(full_store: tuple[Bench, SmallDisk], good: str, step: str) -> None:
    bench, disk = full_store
    missing, leave_bytes = STORE_STEPS[step]
    for kind, name in missing:
        bench.forget(kind, name)
    before = snapshot(bench.layout)
    disk.fill(leave_bytes=leave_bytes)
    done = bench.build(check=False)
    assert_failed(done, 5, os.fspath(bench.store))
    assert "no space" in done.stderr.lower(), done.describe()
    assert "--cache DIR" in done.stderr.splitlines()[-1]
    assert snapshot(bench.layout) == before
    bench.assert_sound()
    disk.make_room()
    bench.build()
    assert bench.digest() == good
    bench.assert_sound()


def test_no_room_for_a_download(full_store: tuple[Bench, SmallDisk], good: str) -> None:
    bench, disk = full_store
    for kind, name in (("artifact", "python-deps"), ("layer", "python-deps"), ("download", "uvicorn-")):
        bench.forget(kind, name)
    with running_mirror(bench.lock, bench.warm.store) as mirror:
        disk.fill(leave_bytes=12 << 10)
        done = bench.build(*mirror.options, env=mirror.environment, check=False)
        assert_failed(done, 5, f"no space is left for the store {bench.store}")
        bench.assert_sound()
        disk.make_room()
        bench.build(*mirror.options, env=mirror.environment)
    assert bench.digest() == good
    bench.assert_sound()


def test_no_room_for_the_smoke_test(full_store: tuple[Bench, SmallDisk]) -> None:
    bench, disk = full_store
    before = snapshot(bench.layout)
    disk.fill(leave_bytes=10 * MIB)
    done = bench.command.run(*(word for word in bench.argv() if word != "--no-test"), check=False)
    assert_failed(done, 5, "no space is left")
    assert snapshot(bench.layout) == before
    bench.assert_sound()


def test_a_full_store_that_lacks_nothing_is_enough(full_store: tuple[Bench, SmallDisk], good: str) -> None:
    bench, disk = full_store
    disk.fill(leave_bytes=0)
    bench.build()
    assert bench.digest() == good


def test_a_full_store_can_be_pruned(full_store: tuple[Bench, SmallDisk]) -> None:
    bench, disk = full_store
    bench.forget("layer", "rootfs")
    disk.fill(leave_bytes=MIB)
    bench.build(check=False)
    disk.make_room()
    disk.fill(leave_bytes=0)
    bench.command.run("cache", "prune", "--all")
    assert disk.free_bytes > 50 * MIB
    assert [path for path in (bench.store / "v1").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "leave_bytes",
    [0, pytest.param(MIB, marks=pytest.mark.slow), 2_290_000],
    ids=["nothing", "1 MiB", "hardly more than the model"],
)
def test_no_room_for_the_layout(
    warm: Warm, tmp_path: Path, make_disk: Callable[[int], SmallDisk], good: str, leave_bytes: int
) -> None:
    disk = make_disk(64 * MIB)
    bench = make_bench(warm, tmp_path / "build", layout=disk.path / "layout")
    bench.build("--quantization", "F16")
    before = snapshot(bench.layout)
    disk.fill(leave_bytes=leave_bytes)
    done = bench.build("--tag", "h.example/a:new", check=False)
    assert_failed(done, 5, f"no space left in {bench.layout} for")
    assert snapshot(bench.layout) == before
    bench.assert_sound()
    disk.make_room()
    bench.build()
    assert bench.digest() == good
    bench.assert_sound()


def test_no_room_for_a_new_layout(warm: Warm, tmp_path: Path, make_disk: Callable[[int], SmallDisk]) -> None:
    disk = make_disk(4 * MIB)
    bench = make_bench(warm, tmp_path / "build", layout=disk.path / "new" / "layout")
    done = bench.build(check=False)
    assert_failed(done, 5, f"no space left in {bench.layout} for")
    assert list(disk.path.iterdir()) == []


def test_no_room_for_index_json(
    warm: Warm, tmp_path: Path, make_disk: Callable[[int], SmallDisk], good: str
) -> None:
    """All blobs are there already; only the new names have no room."""
    disk = make_disk(64 * MIB)
    bench = make_bench(warm, tmp_path / "build", layout=disk.path / "layout")
    bench.build("--tag", "h.example/a:old")
    before = snapshot(bench.layout)
    disk.fill(leave_bytes=0)
    done = bench.build("--tag", "h.example/a:new", check=False)
    assert_failed(done, 5, f"no space left in {bench.layout} for index.json")
    assert snapshot(bench.layout) == before
    disk.make_room()
    bench.build("--tag", "h.example/a:new")
    assert bench.digest() == good
    assert b'"new"' in (bench.layout / "index.json").read_bytes()
    bench.assert_sound()


def test_no_room_for_an_archive(
    warm: Warm, tmp_path: Path, make_disk: Callable[[int], SmallDisk], good: str
) -> None:
    disk = make_disk(8 * MIB)
    bench = make_bench(warm, tmp_path / "build")
    bench.build()
    done = bench.command.run("archive", bench.layout, "--output", disk.path / "image.tar", check=False)
    assert_failed(done, 5, f"{disk.path / 'image.tar'} cannot be written: No space left on device")
    assert list(disk.path.iterdir()) == []
    with (disk.path / "by-pipe.tar").open("wb") as out:
        piped = subprocess.run(
            [*bench.command.program, "archive", bench.layout], env=dict(bench.command.variables),
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert piped.returncode == 5, piped.stderr
    assert "Traceback" not in piped.stderr
    assert "error: " in piped.stderr
    assert "No space left on device" in piped.stderr


def test_no_room_for_what_is_said(bench: Bench, make_disk: Callable[[int], SmallDisk]) -> None:
    """`edgebuild … --json > file`."""
    disk = make_disk(MIB)
    disk.fill(leave_bytes=0)
    with (disk.path / "profiles.json").open("wb") as out:
        done = subprocess.run(
            [*bench.command.program, "cache", "info", "--json"], env=dict(bench.command.variables),
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: standard output cannot be written: No space left on device" in done.stderr


def test_no_room_for_keys(bench: Bench, make_disk: Callable[[int], SmallDisk]) -> None:
    disk = make_disk(MIB)
    (bench.command.folder / "password").write_text("long enough\n")
    disk.fill(leave_bytes=0)
    before = sorted(disk.path.iterdir())
    argv = ("keys", "generate", "--output", disk.path / "keys", "--password-file", "password")
    done = bench.command.run(*argv, check=False)
    assert "Traceback" not in done.stderr, done.describe()
    assert done.returncode in {5, 8}, done.describe()
    assert "error: " in done.stderr
    assert "hint: " in done.stderr
    left = [path for path in disk.path.rglob("*") if path not in before and path.is_file()]
    assert left == []


@pytest.mark.slow
def test_no_room_for_the_lock(warm: Warm, tmp_path: Path, make_disk: Callable[[int], SmallDisk]) -> None:
    """Resolving needs the network; the lock file of before stays."""
    disk = make_disk(MIB)
    bench = make_bench(warm, tmp_path / "build")
    lock = disk.path / "edgebuild.lock"
    document = json.loads(bench.lock.read_bytes()) | {"epoch_s": 1}
    lock.write_text(json.dumps(document))
    before = lock.read_bytes()
    disk.fill(leave_bytes=0)
    argv = [word for word in bench.argv("--lock", lock, "--update-lock") if word != "--locked"]
    done = bench.command.run(*argv, check=False)
    assert_failed(done, 3, f"{lock}: the lock cannot be written: No space left on device")
    assert lock.read_bytes() == before
    assert sorted(path.name for path in disk.path.iterdir()) == ["ballast", "edgebuild.lock"]

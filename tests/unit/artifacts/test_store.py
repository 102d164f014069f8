"""The store: atomic entries, seals, locks, and what happens when builds die or files are altered."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.errors import StoreError
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import WHOLE_FILE
from tests.unit.artifacts.entries import KEY, OTHER, leftovers, refuse, write, write_one


def test_entry_is_built_once_and_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("artifact", KEY) is None
    folder = store.make("artifact", KEY, write)
    assert (folder / "sub" / "a.txt").read_text() == "alpha"
    assert store.make("artifact", KEY, refuse) == folder
    assert Store(tmp_path).find("artifact", KEY) == folder
    assert store.find("artifact", OTHER) is None
    assert store.find("layer", KEY) is None
    assert leftovers(store) == []


def test_nothing_is_written_before_the_first_entry(tmp_path: Path) -> None:
    store = Store(tmp_path / "absent")
    assert store.find("artifact", KEY) is None
    assert all(info.entries == 0 for info in store.info())
    assert store.verify() == ()
    assert store.prune().entries == 0
    assert not (tmp_path / "absent").exists()


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> None:
        write(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.make("artifact", KEY, fail)
    assert store.find("artifact", KEY) is None
    assert leftovers(store) == []
    assert store.make("artifact", KEY, write).is_dir()


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_folder_of_an_entry_does_not_depend_on_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = Store(tmp_path).make("artifact", KEY, write)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755


_BUILDER = """
import sys, time
from pathlib import Path
from edgebuild.artifacts.store import Store
from edgebuild.oci.digest import Digest
root, counter, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def build(folder):
    with counter.open("a") as file:
        file.write("x")
    (folder / "half").touch()
    print("building", flush=True)
    time.sleep(seconds)
    (folder / "whole").touch()
print(Store(root).make("artifact", Digest.of(b"key"), build))
"""


def start_builder(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _BUILDER, tmp_path / "store", tmp_path / "counter", str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_build_an_entry_once(tmp_path: Path) -> None:
    builders = [start_builder(tmp_path, 0.5) for _ in range(4)]
    answers = [builder.communicate(timeout=60)[0].splitlines()[-1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0, 0]
    assert len(set(answers)) == 1
    assert (tmp_path / "counter").read_text() == "x"
    assert Path(answers[0]).is_dir()


def test_two_threads_build_an_entry_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    built = []

    def slow(folder: Path) -> None:
        built.append(1)
        time.sleep(0.2)
        write(folder)

    threads = [threading.Thread(target=store.make, args=("artifact", KEY, slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert built == [1]


def test_killed_builder_leaves_only_a_temporary_folder_that_the_next_one_sweeps(tmp_path: Path) -> None:
    builder = start_builder(tmp_path, 600)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "building\n"
    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate(timeout=60)
    store = Store(tmp_path / "store")
    assert store.find("artifact", KEY) is None
    assert len(leftovers(store)) == 1
    store.make("artifact", KEY, write)
    assert leftovers(store) == []


def test_prune_sweeps_what_dead_builders_left_and_spares_living_ones(tmp_path: Path) -> None:
    dead = start_builder(tmp_path, 600)
    assert dead.stdout is not None
    dead.stdout.readline()
    os.kill(dead.pid, signal.SIGKILL)
    dead.communicate(timeout=60)
    store = Store(tmp_path / "store")
    store.prune()
    assert leftovers(store) == []
    living = start_builder(tmp_path, 1.5)
    assert living.stdout is not None
    living.stdout.readline()
    store.prune()
    assert len(leftovers(store)) == 1
    assert living.wait(60) == 0
    living.communicate()
    assert store.find("artifact", KEY) is not None


def test_prune_removes_what_was_not_used_since(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = store.make("artifact", KEY, write)
    new = store.make("artifact", OTHER, write)
    os.utime(old.with_name(old.name + ".seal"), (1000, 1000))
    pruned = store.prune(unused_since_s=2000)
    assert (pruned.entries, pruned.size_bytes) == (1, 15)
    assert not old.exists()
    assert store.find("artifact", OTHER) == new
    os.utime(new.with_name(new.name + ".seal"), (1000, 1000))
    store.find("artifact", OTHER)
    assert store.prune(unused_since_s=2000).entries == 0, "finding an entry counts as use"
    assert store.prune().entries == 1
    assert store.find("artifact", OTHER) is None


def test_prune_removes_scratch_and_idle_locks(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make("artifact", KEY, write)
    (store.scratch("compiler") / "x").write_bytes(b"12345")
    assert {info.kind: info.size_bytes for info in store.info()}["scratch"] == 5
    with store.alone("held"):
        store.prune()
        assert [path.name for path in (tmp_path / "v1" / "locks").glob("*")] == ["held"]
    assert list((tmp_path / "v1" / "scratch").glob("*")) == []


def test_info_counts_entries_and_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make("artifact", KEY, write)
    store.make("download", KEY, write_one)
    info = {entry.kind: entry for entry in store.info()}
    assert (info["artifact"].entries, info["artifact"].size_bytes) == (1, 15)
    assert (info["download"].entries, info["download"].size_bytes) == (1, 7)
    assert (info["model"].entries, info["model"].size_bytes) == (0, 0)


def test_digest_of_a_foreign_file_is_remembered_until_it_changes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    assert store.known_digest(model, "file") is None
    store.remember_digest(model, "file", KEY)
    assert store.known_digest(model, "file") == KEY
    assert store.known_digest(model, "another tag") is None
    assert Store(tmp_path / "store").known_digest(model, "file") == KEY
    times = model.stat()
    model.write_bytes(b"wEights")
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.known_digest(model, "file") is None
    model.unlink()
    assert store.known_digest(model, "file") is None


def test_digest_of_an_entrys_file_is_that_of_its_seal(tmp_path: Path) -> None:
    """Whoever made an entry hashed it, so that nobody hashes it again, as long as it is as it was sealed."""
    store = Store(tmp_path / "store")
    folder = store.make("artifact", KEY, write)
    file = folder / "sub" / "a.txt"
    assert store.known_digest(file, WHOLE_FILE) == Digest.of(b"alpha")
    assert store.known_digest(file, "another tag") is None
    for other in (folder, folder / "sub", folder / "link", folder / "none", store.root / "v1" / "artifact"):
        assert store.known_digest(other, WHOLE_FILE) is None
    times = file.stat()
    file.write_text("alphA")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.known_digest(file, WHOLE_FILE) is None


def test_store_in_the_place_of_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used") as caught:
        Store(tmp_path / "file").make("artifact", KEY, write)
    assert "--cache" in caught.value.hint


_FULL = """
import sys
from pathlib import Path
from edgebuild.artifacts.store import Store
from edgebuild.errors import StoreError
from edgebuild.oci.digest import Digest
store = Store(Path(sys.argv[1]))
store.make("artifact", Digest.of(b"small"), lambda folder: (folder / "f").write_bytes(b"x") and None)
try:
    store.make("artifact", Digest.of(b"large"), lambda folder: (folder / "f").write_bytes(bytes(1 << 20)) and None)
except StoreError as error:
    print(error.message, "|", error.hint)
print(list((Path(sys.argv[1]) / "v1/temporary").glob("*")), store.find("artifact", Digest.of(b"small")) is not None)
"""


def test_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=256k none {tmp_path} && exec {sys.executable} -c '{_FULL}' {tmp_path}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    said, state = done.stdout.splitlines()
    assert said.startswith("no space is left for the store")
    assert "cache prune" in said
    assert state == "[] True"


_USER = """
import sys
from pathlib import Path
from edgebuild.artifacts.store import Store
from edgebuild.oci.digest import Digest
store = Store(Path(sys.argv[1]))
print(store.find("artifact", Digest.of(b"key")), flush=True)
sys.stdin.read()
"""


def test_prune_spares_what_a_living_process_has_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    used, unused = store.make("artifact", KEY, write), store.make("artifact", OTHER, write)
    for folder in (used, unused):
        os.utime(folder.with_name(folder.name + ".seal"), (1000, 1000))
    (store.scratch("partial") / "half").touch()
    user = subprocess.Popen(
        [sys.executable, "-c", _USER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert user.stdout is not None
    assert user.stdout.readline() == f"{used}\n"
    assert store.prune().entries == 1
    assert used.is_dir()
    assert not unused.exists()
    assert (store.scratch("partial") / "half").exists()
    os.kill(user.pid, signal.SIGKILL)
    user.communicate(timeout=60)
    assert store.prune().entries == 1
    assert not used.exists()
    assert not (tmp_path / "v1" / "scratch" / "partial").exists()
    assert len(list((tmp_path / "v1" / "users").iterdir())) == 1, "its own"


def test_store_that_is_closed_leaves_no_trace_of_its_use(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make("artifact", KEY, write)
    assert len(list((tmp_path / "v1" / "users").iterdir())) == 1
    del store
    assert list((tmp_path / "v1" / "users").iterdir()) == []

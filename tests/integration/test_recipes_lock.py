"""The lock in use: what a build does with and without one, with and without network."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgebuild.artifacts.recipe_file import load_recipe, recipe_names
from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.data import data_path
from edgebuild.errors import EdgebuildError, LockError, ToolError
from edgebuild.host import Host, make_host
from edgebuild.lock import Lock, load_lock, render_lock
from edgebuild.locking import Need, find_differences, obtain_lock
from edgebuild.oci.platform import LINUX_ARM64
from edgebuild.progress import SilentProgress
from edgebuild.resolving import resolve_lock
from tests.unit.artifacts.telling import Told

NEEDED = (Need("server", LINUX_ARM64), Need("python-deps", LINUX_ARM64))


class Desk:
    """What `obtain_lock` is called with; `network=False` leads all ways out into nothing."""

    def __init__(self, folder: Path, store: Path, images: Path) -> None:
        self.path = folder / "edgebuild.lock"
        self.told = Told()
        self.store = Store(store, progress=self.told)
        self.images = images
        self._host = make_host(
            environment=os.environ, working_directory=folder, cpu_count=1, now_s=int(time.time()), cache=store
        )

    def host(self, *, network: bool) -> Host:
        if network:
            return self._host
        dead = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
        return replace(self._host, environment={"PATH": "/nonexistent", "HOME": "/nonexistent", **dead})

    def obtain(self, *, locked: bool = False, update: bool = False, network: bool = True) -> Lock:
        host = self.host(network=network)
        sources = Sources(host=host, store=self.store, progress=self.told, images=self.images)
        return obtain_lock(
            self.path,
            needed=NEEDED,
            locked=locked,
            update=update,
            host=host,
            store=self.store,
            progress=self.told,
            sources=sources,
        )


@pytest.fixture(scope="session")
def resolved(built_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Lock:
    """The lock of this moment, from the host's own mirrors and index."""
    host = make_host(
        environment=os.environ,
        working_directory=tmp_path_factory.mktemp("resolve"),
        cpu_count=1,
        now_s=int(time.time()),
        cache=built_store,
    )
    lock = resolve_lock(host=host, store=Store(built_store), progress=SilentProgress())
    sources = Sources(host=host, store=Store(built_store), progress=SilentProgress())
    needed = [lock.inputs(name, platform, machine=host.machine) for name, platform, _ in NEEDED]
    for items in (*needed, lock.inputs("toolchain", LINUX_ARM64, machine=host.machine)):
        sources.fetch_all(items)
    return lock


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return shutil.copytree(
        data_path("images"), tmp_path / "images", ignore=shutil.ignore_patterns("demo-model", "__pycache__")
    )


@pytest.fixture
def desk(tmp_path: Path, built_store: Path, images: Path) -> Desk:
    return Desk(tmp_path, built_store, images)


def test_resolved_lock_covers_all_recipes_and_is_written_the_same_twice(
    resolved: Lock, tmp_path: Path
) -> None:
    recipes = tuple(load_recipe(data_path("images"), name) for name in recipe_names(data_path("images")))
    assert find_differences(resolved, recipes) == ()
    assert {entry.artifact for entry in resolved.artifacts} == {recipe.name for recipe in recipes}
    assert len(resolved.artifacts) == 2 * len(recipes)
    assert abs(resolved.epoch_s - time.time()) < 400 * 86400
    (tmp_path / "lock").write_bytes(render_lock(resolved))
    assert load_lock(tmp_path / "lock") == resolved
    left_out = {"debconf", "openssl", "mawk", "tzdata"}
    names = {item.name for item in resolved.inputs("rootfs", LINUX_ARM64, machine="x86_64")}
    assert {"libc6", "libssl3t64", "python3.13-minimal", "ca-certificates"} <= names
    assert not names & left_out


def test_lock_names_no_host(resolved: Lock) -> None:
    assert b"://" not in render_lock(resolved)


def test_first_build_resolves_and_writes(desk: Desk, resolved: Lock) -> None:
    lock = desk.obtain()
    assert load_lock(desk.path) == lock
    assert {entry.artifact for entry in lock.artifacts} == {entry.artifact for entry in resolved.artifacts}


def test_second_build_needs_no_network(desk: Desk, resolved: Lock) -> None:
    desk.path.write_bytes(render_lock(resolved))
    assert desk.obtain(network=False) == resolved
    assert any("all of it in the store" in note for note in desk.told.notes)
    assert desk.obtain(network=False, locked=True) == resolved


@pytest.mark.slow
def test_update_asks_the_network_whatever_the_lock_says(desk: Desk, resolved: Lock) -> None:
    desk.path.write_bytes(render_lock(resolved))
    with pytest.raises(ToolError):
        desk.obtain(network=False, update=True)
    assert load_lock(desk.path) == resolved, "a failure leaves the file alone"


@pytest.mark.slow
def test_no_lock_and_no_network_is_one_clear_error(desk: Desk) -> None:
    with pytest.raises(ToolError) as caught:
        desk.obtain(network=False)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert not desk.path.exists()


def test_locked_without_a_lock(desk: Desk) -> None:
    with pytest.raises(LockError, match="no such lock file"):
        desk.obtain(locked=True)


def change_input(lock: dict[str, Any], package: str, **fields: object) -> None:
    for entry in lock["artifacts"]:
        for item in entry["inputs"]:
            if item["name"] == package:
                item.update(fields)


def remove_input(lock: dict[str, Any], name: str) -> None:
    for entry in lock["artifacts"]:
        entry["inputs"] = [item for item in entry["inputs"] if item["name"] != name]


def rename_artifact(lock: dict[str, Any]) -> None:
    lock["artifacts"][0]["artifact"] = "unknown"


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another wheel": (lambda lock: change_input(lock, "jinja2", sha256="0" * 64), "jinja2"),
    "another compiler": (lambda lock: change_input(lock, "ziglang", version="0.1"), "ziglang 0.17"),
    "a package less": (lambda lock: remove_input(lock, "ca-certificates"), "ca-certificates is missing"),
    "a wheel less": (lambda lock: remove_input(lock, "uvicorn"), "uvicorn is missing"),
    "an unwanted package": (lambda lock: change_input(lock, "netbase", name="mawk"), "mawk is not wanted"),
    "another recipe": (rename_artifact, "has no recipe"),
    "a recipe less": (lambda lock: lock["artifacts"].pop(), "is not in it"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_lock_that_does_not_fit_the_recipes_is_refused_when_locked(
    desk: Desk, resolved: Lock, edit: str
) -> None:
    document = json.loads(render_lock(resolved))
    change, told = EDITS[edit]
    change(document)
    desk.path.write_text(json.dumps(document))
    with pytest.raises(LockError, match="does not fit") as caught:
        desk.obtain(locked=True, network=False)
    assert any(told in fault for fault in caught.value.faults)
    assert "--update-lock" in caught.value.hint


def test_older_versions_of_packages_are_the_locks_own_business(desk: Desk, resolved: Lock) -> None:
    document = json.loads(render_lock(resolved))
    change_input(document, "libc6", version="2.41-1", sha256="0" * 64)
    desk.path.write_text(json.dumps(document))
    assert desk.obtain(locked=True, network=False).version_of("libc6") == "2.41-1"


@pytest.mark.slow
def test_recipe_that_changed_makes_an_unlocked_build_resolve_anew(
    desk: Desk, images: Path, resolved: Lock
) -> None:
    desk.path.write_bytes(render_lock(resolved))
    path = images / "rootfs" / "recipe.toml"
    path.write_text(path.read_text().replace('"ca-certificates",', '"ca-certificates", "adduser",'))
    with pytest.raises(LockError, match="adduser is missing"):
        desk.obtain(locked=True)
    lock = desk.obtain()
    names = {item.name for item in lock.inputs("rootfs", LINUX_ARM64, machine="x86_64")}
    assert "adduser" in names


@pytest.mark.slow
def test_place_that_cannot_be_written(desk: Desk, resolved: Lock, tmp_path: Path) -> None:
    desk.path = tmp_path / "absent" / "edgebuild.lock"
    with pytest.raises(EdgebuildError, match="cannot be written") as caught:
        desk.obtain()
    assert "--lock" in caught.value.hint


@pytest.mark.slow
def test_mirror_that_is_none_is_one_clear_error(desk: Desk) -> None:
    host = desk.host(network=True)
    sources = Sources(
        host=host,
        store=desk.store,
        progress=desk.told,
        images=desk.images,
        mirrors=("http://127.0.0.1:9/debian",),
    )
    with pytest.raises(
        ToolError, match=r"apt cannot read trixie for a\w+64 from http://127\.0\.0\.1:9/debian"
    ):
        resolve_lock(host=host, store=desk.store, progress=desk.told, sources=sources)

"""A place to break builds in: a small store of its own for every test, filled from the shared one without compiling.

The builds are those of profile pi4, without the smoke test unless a test asks for it: they run every step but compiling,
which the shared store has done, in a few seconds.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.built import PROFILES, Edgebuild, make_edgebuild, use_trees
from tests.support.peers.tool import Completed

# Recipes that a broken build runs again; llama-cpp and the compiler never.
_REBUILT = frozenset({"rootfs", "python-deps", "server", "toolchain", "qemu"})
_BUILD_TIMEOUT_S = 3 * 3600.0
STEPS_MADE_ANEW = (
    ("model", ""),
    ("artifact", "python-deps"),
    ("layer", "python-deps"),
    ("artifact", "server"),
    ("layer", "server"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """What a build of pi4 and x86 takes from a store, in a folder of its own.

    Attributes:
        store: The store; copy it, never build with it.
        lock: The lock file.
        model: The 16-bit model.
    """

    store: Path
    lock: Path
    model: str

    def entries(self, kind: str) -> Iterator[Path]:
        """Yield the folders of a kind of entry."""
        return (path.with_suffix("") for path in sorted((self.store / "v1" / kind).glob("*.seal")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A build that a test can break.

    Attributes:
        command: The command line, in a folder of its own.
        warm: Where the store was copied from.
        store: Folder of the store.
        lock: The lock file.
        layout: Where the layout is written.
        arguments: What every build is asked for.
    """

    command: Edgebuild
    warm: Warm
    store: Path
    lock: Path
    layout: Path
    arguments: tuple[str | Path, ...] = field(default=())

    def argv(self, *more: str | Path) -> tuple[str | Path, ...]:
        """Give the arguments of a build; later options win over earlier ones."""
        return (
            "image", "--profile", "pi4", "--model", self.warm.model, "--no-test", "--cache", self.store,
            "--lock", self.lock, "--locked", "--output", self.layout, *self.arguments, *more,
        )  # fmt: skip

    def build(
        self,
        *more: str | Path,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 300,
    ) -> Completed:
        """Run a build to its end."""
        return self.command.run(*self.argv(*more), check=check, env=env, timeout_s=timeout_s)

    def digest(self) -> str:
        """Return the digest of what the layout names first."""
        entries = json.loads((self.layout / "index.json").read_bytes())["manifests"]
        digest: str = entries[0]["digest"]
        return digest

    def entry(self, kind: str, name: str, platform: str = "linux/arm64") -> Path:
        """Return the folder of the entry of an artifact; of models and downloads `name` is part of the file's name."""
        found = [path for path in self.entries(kind) if _is_called(path, kind, name, platform)]
        assert len(found) == 1, (kind, name, found)
        return found[0]

    def entries(self, kind: str) -> list[Path]:
        """Return the folders of a kind of entry."""
        return [path.with_suffix("") for path in sorted((self.store / "v1" / kind).glob("*.seal"))]

    def forget(self, kind: str, name: str, platform: str = "linux/arm64") -> None:
        """Remove an entry, so that it is made anew."""
        folder = self.entry(kind, name, platform)
        folder.with_name(folder.name + ".seal").unlink()
        shutil.rmtree(folder)

    def forget_software(self, name: str) -> None:
        """Remove an artifact and its layer, without which nobody looks for the artifact, so that its recipe runs again."""
        self.forget("artifact", name)
        self.forget("layer", name)

    def forget_artifacts(self, kept: frozenset[str]) -> None:
        """Remove all artifacts but those of the recipes named."""
        for folder in self.entries("artifact"):
            if _document(folder / "artifact.json").get("artifact") not in kept:
                folder.with_name(folder.name + ".seal").unlink()
                shutil.rmtree(folder)

    def forget_steps(self) -> None:
        """Make the next build run most of its steps: quantising, two recipes, two layers."""
        for kind, name in STEPS_MADE_ANEW:
            self.forget(kind, name)

    def leftovers(self) -> list[str]:
        """List what only builds under way may have.

        Parts of seals are left out: a kill in the middle of renewing one leaves some kilobytes until `cache prune`.
        """
        base = self.store / "v1"
        found = [*(base / "temporary").glob("*")]
        for folder in (self.layout, self.layout / "blobs/sha256", self.lock.parent):
            found += folder.glob(".edgebuild*") if folder.is_dir() else ()
        found += self.lock.parent.glob(f".{self.lock.name}*")
        for kind in ("download", "artifact", "layer", "model", "evaluation"):
            for path in (base / kind).glob("*"):
                if (
                    path.suffix != ".seal"
                    and ".seal." not in path.name
                    and not path.with_name(path.name + ".seal").exists()
                ):
                    found.append(path)
        return [os.fspath(path) for path in found]

    def assert_sound(self) -> None:
        """See that the store verifies and that nothing is left over. A build that ends well has checked its layout."""
        done = self.command.run("cache", "verify", "--cache", self.store, check=False)
        assert done.returncode == 0, done.describe()
        assert self.leftovers() == []


def assert_failed(done: Completed, code: int, *parts: str) -> None:
    """See one line `error: …` with the parts, one line `hint: …` after it, and no traceback."""
    assert done.returncode == code, done.describe()
    assert "Traceback" not in done.stderr, done.describe()
    assert "Exception" not in done.stderr, done.describe()
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.describe()
    for part in parts:
        assert part in errors[0], done.describe()
    assert lines[-1].startswith("hint: "), done.describe()
    assert len(lines[-1]) > len("hint: "), done.describe()


@pytest.fixture(scope="session")
def warm(built_store: Path, built_lock: Path, tmp_path_factory: pytest.TempPathFactory) -> Warm:
    """The entries of the shared store that a build of pi4 and x86 uses, and the files that the broken builds make again."""
    folder = tmp_path_factory.mktemp("warm")
    command = make_edgebuild(folder, built_store)
    model = os.environ.get("EDGEBUILD_TEST_MODEL", "demo")
    since_s = time.time() - 1
    command.run(
        "image", *(option for name in PROFILES for option in ("--profile", name)), "--model", model,
        "--lock", built_lock, "--no-test", "--output", "layout", timeout_s=_BUILD_TIMEOUT_S,
    )  # fmt: skip
    shutil.rmtree(folder / "layout")
    use_trees(built_store, built_lock)
    base, copy = built_store / "v1", folder / "store" / "v1"
    wanted = {item["sha256"] for item in _rebuilt_inputs(built_lock)}
    for seal in base.glob("*/*.seal"):
        kind, entry = seal.parent.name, seal.with_suffix("")
        # Whatever the build found, it marked as used; torch another test's, and it is large.
        is_used = seal.stat().st_mtime >= since_s and not (entry / "packages" / "torch").exists()
        is_tool = kind == "artifact" and _document(entry / "artifact.json").get("artifact") in {
            "qemu",
            "toolchain",
        }
        if is_used or is_tool or (kind == "download" and entry.name in wanted):
            (copy / kind).mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", entry, seal, copy / kind], check=True)
    lock = folder / "edgebuild.lock"
    shutil.copyfile(built_lock, lock)
    return Warm(store=copy.parent, lock=lock, model=model)


@pytest.fixture
def bench(warm: Warm, tmp_path: Path) -> Bench:
    """A build in an empty folder with a store that has everything."""
    return make_bench(warm, tmp_path)


def make_bench(
    warm: Warm,
    folder: Path,
    *,
    store: Path | None = None,
    layout: Path | None = None,
    program: tuple[str, ...] = (),
) -> Bench:
    """Copy the store and the lock, and make the command ready.

    Args:
        warm: What is copied.
        folder: Working directory.
        store: Where the copy goes; by default below `folder`.
        layout: Where layouts go; by default below `folder`.
        program: Another command line, e.g. of another checkout.
    """
    folder.mkdir(exist_ok=True)
    place = store or folder / "store"
    place.parent.mkdir(parents=True, exist_ok=True)
    # Links where they are possible: nothing writes into an entry's files, and tests that do break the link first.
    linked = ["-l"] if place.parent.stat().st_dev == warm.store.stat().st_dev else []
    subprocess.run(["cp", "-a", *linked, warm.store, place], check=True)
    lock = folder / "edgebuild.lock"
    shutil.copyfile(warm.lock, lock)
    command = make_edgebuild(folder, place)
    if program:
        command = Edgebuild(folder=folder, variables=command.variables, program=program)
    return Bench(command=command, warm=warm, store=place, lock=lock, layout=layout or folder / "layout")


def own_copy(path: Path) -> Path:
    """Break a hard link, so that a test can damage the file without damaging other copies; times stay."""
    private = path.with_name(path.name + ".private")
    shutil.copy2(path, private)
    private.replace(path)
    return path


def python_program(checkout: Path) -> tuple[str, ...]:
    """The command line of another checkout, run by this Python."""
    code = f"import sys; sys.path.insert(0, {os.fspath(checkout / 'builder')!r}); from edgebuild.cli import main; main()"
    return (sys.executable, "-c", code)


def _rebuilt_inputs(lock: Path) -> list[dict[str, str]]:
    document = json.loads(lock.read_bytes())
    return [
        item for entry in document["artifacts"] if entry["artifact"] in _REBUILT for item in entry["inputs"]
    ]


def _document(path: Path) -> dict[str, str]:
    try:
        document: dict[str, str] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return document


def _is_called(entry: Path, kind: str, name: str, platform: str) -> bool:
    if kind in {"download", "model"}:
        return any(name in path.name for path in entry.iterdir())
    document = _document(entry / f"{kind}.json")
    return document.get("artifact") == name and document.get("platform") == platform

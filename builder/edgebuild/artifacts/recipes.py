"""Runs recipes: from locked inputs to a tree in the store.

1. The key is the sha256 of everything that the tree depends on: the recipe's files, its inputs, the platform, its
   compiler's key, and the version of the Python that compiles bytecode.
2. What is in the store under this key is taken.
3. Else inputs are fetched and checked, and the recipe runs offline in an empty folder.
"""

import shutil
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from edgebuild.artifacts.recipe_file import Recipe
from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json, pretty_json
from edgebuild.errors import StoreError, ToolError
from edgebuild.host import Host
from edgebuild.lock import Lock
from edgebuild.oci.digest import Digest
from edgebuild.oci.platform import Platform
from edgebuild.process import run
from edgebuild.progress import Progress

COMPILER = "compiler"
TOOLCHAIN = "toolchain"
_KEY_FORMAT = 1
_PYTHON_PACKAGE = "python3.13-minimal"
# zig compiles a C++ library once for every target, which takes a minute, and keeps it here.
_SCRATCH = "zig"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A tree that a recipe made.

    Attributes:
        name: Name of the recipe.
        platform: What it is for.
        key: Digest of all that it was made from.
        tree: Folder in the store; never written to.
    """

    name: str
    platform: Platform
    key: Digest
    tree: Path


def build_artifact(
    name: str,
    *,
    platform: Platform,
    lock: Lock,
    host: Host,
    store: Store,
    progress: Progress,
    sources: Sources | None = None,
    variants: tuple[str, ...] = (),
) -> Artifact:
    """Return an artifact, built now if the store does not have it.

    Args:
        name: Name of the recipe.
        platform: What it is for.
        lock: Its inputs.
        host: This machine.
        store: Keeps it.
        progress: Told of downloads and of the recipe's steps.
        sources: Where recipes and inputs come from; None takes edgebuild's own recipes and asks the host's apt, pip and uv.
        variants: CPU variants, for the recipe llama-cpp; empty means all that it knows.

    Raises:
        ToolError: A download or the recipe failed.
        LockError: The lock does not know the recipe.
        StoreError: The disk is full.
    """
    source = sources or Sources(host=host, store=store, progress=progress)
    recipe = source.recipe(name)
    # Step 1.
    document = _key_document(recipe, platform, lock=lock, host=host, sources=source, variants=variants)
    key = Digest.of(canonical_json(document))
    # Step 2.
    if (found := store.find("artifact", key)) is not None:
        return Artifact(name=name, platform=platform, key=key, tree=found / "tree")
    tools = {
        tool: build_artifact(
            tool,
            platform=Platform.of_machine(host.machine),
            lock=lock,
            host=host,
            store=store,
            progress=progress,
            sources=source,
        )
        for tool in recipe.file.artifact.needs
    }
    inputs = lock.inputs(name, platform, machine=host.machine)

    def build(folder: Path) -> None:
        # Step 3.
        work = folder / "work"
        given = work / "inputs"
        given.mkdir(parents=True)
        for item, path in zip(inputs, source.fetch_all(inputs), strict=True):
            (given / item.file).symlink_to(path)
        arguments: list[str | Path] = [
            "--inputs",
            given,
            "--output",
            folder / "tree",
            "--jobs",
            str(host.cpu_count),
        ]
        for tool, artifact in tools.items():
            arguments += [f"--{tool}", artifact.tree]
        arguments += ["--variants", ",".join(variants)] if variants else []
        run_recipe(recipe, platform, arguments, work=work, host=host, store=store, progress=progress)
        shutil.rmtree(work)
        (folder / "artifact.json").write_bytes(pretty_json(document))

    entry = store.make("artifact", key, build)
    return Artifact(name=name, platform=platform, key=key, tree=entry / "tree")


def artifact_key(name: str, *, platform: Platform, lock: Lock, host: Host, sources: Sources) -> Digest:
    """Return the key of an artifact with the recipe's own variants; the store is not asked.

    Raises:
        ToolError: The recipe cannot be read.
        LockError: The lock does not know it.
    """
    recipe = sources.recipe(name)
    document = _key_document(recipe, platform, lock=lock, host=host, sources=sources, variants=())
    return Digest.of(canonical_json(document))


def run_recipe(
    recipe: Recipe,
    platform: Platform,
    arguments: list[str | Path],
    *,
    work: Path,
    host: Host,
    store: Store,
    progress: Progress,
) -> None:
    """Run a recipe's program, offline and with nothing of the user's environment but PATH.

    Raises:
        ToolError: It fails.
    """
    temporary = work / "temporary"
    temporary.mkdir()
    environment = {
        "PATH": host.environment.get("PATH", "/usr/bin:/bin"),
        "LC_ALL": "C.UTF-8",
        "HOME": str(work),
        "TMPDIR": str(temporary),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    argv = [sys.executable, "-I", "-B", recipe.script, "--platform", str(platform), *arguments]
    argv += ["--cache", store.scratch(_SCRATCH)]
    with progress.task(f"build {recipe.name} for {platform}") as task:
        done = run(argv, environment=environment, cwd=work, check=False, on_line=task.status)
    if done.returncode == 0:
        return
    said = deque((line.strip() for line in done.stderr.splitlines() if line.strip()), maxlen=1)
    last = said[0] if said else f"exit code {done.returncode}"
    if "No space left on device" in done.stderr or "NoSpaceLeft" in done.stderr:
        raise StoreError(
            f"no space is left for the store {store.root} while {recipe.name} is built",
            hint="run `edgebuild cache prune`, or choose another place with --cache DIR",
        )
    log = store.scratch("logs") / f"{recipe.name}-{platform.architecture}.log"
    log.write_text(done.stdout + done.stderr)
    raise ToolError(f"recipe {recipe.name} for {platform} failed: {last}", hint=f"its output is in {log}")


def _key_document(
    recipe: Recipe,
    platform: Platform,
    *,
    lock: Lock,
    host: Host,
    sources: Sources,
    variants: tuple[str, ...],
) -> dict[str, object]:
    inputs = lock.inputs(recipe.name, platform, machine=host.machine)
    document: dict[str, object] = {
        "format": _KEY_FORMAT,
        "artifact": recipe.name,
        "platform": str(platform),
        "recipe": [list(pair) for pair in recipe.files],
        "inputs": [[item.file, item.sha256] for item in inputs],
    }
    if variants:
        document["variants"] = list(variants)
    needs = recipe.file.artifact.needs
    if COMPILER in needs:
        here = Platform.of_machine(host.machine)
        document["compiler"] = str(
            artifact_key(COMPILER, platform=here, lock=lock, host=host, sources=sources)
        )
    if TOOLCHAIN in needs:
        # Bytecode depends on Python's version alone. The toolchain's own key would have llama.cpp compiled again for
        # every security update of Debian's Python.
        document["python"] = _upstream_version(lock.version_of(_PYTHON_PACKAGE))
    return document


def _upstream_version(version: str) -> str:
    """Strip Debian's epoch and revision: "3.13.5-2+deb13u5" gives "3.13.5"."""
    without_epoch = version.partition(":")[2] or version
    return without_epoch.rpartition("-")[0] or without_epoch

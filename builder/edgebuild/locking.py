"""Settles the lock of a build: which packages go in.

With `--locked` the lock file is taken as it stands, or refused. Without it, a lock that fits the recipes and whose
files are all in the store is used, so that a second build needs no network; else everything is resolved anew.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from edgebuild.artifacts.layers import has_layer
from edgebuild.artifacts.recipe_file import Recipe
from edgebuild.artifacts.recipes import COMPILER, TOOLCHAIN, artifact_key
from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.errors import LockError
from edgebuild.host import Host
from edgebuild.lock import PLATFORMS, Lock, LockedArtifact, load_lock, render_lock
from edgebuild.oci.platform import Platform
from edgebuild.progress import Progress

_SHOWN = 5


class Need(NamedTuple):
    """Something that a build is going to use.

    Attributes:
        artifact: Name of its recipe.
        platform: What it is for.
        prefix: Where the artifact's layer has it in the image, if only the layer is used; None if its tree is.
    """

    artifact: str
    platform: Platform
    prefix: str | None = None


def obtain_lock(
    path: Path,
    *,
    needed: tuple[Need, ...],
    locked: bool,
    update: bool,
    host: Host,
    store: Store,
    progress: Progress,
    sources: Sources | None = None,
) -> Lock:
    """Return the lock that a build uses; write it to `path` when it was resolved.

    Args:
        path: The lock file.
        needed: What the build is going to use.
        locked: Refuse anything but the file as it stands.
        update: Resolve anew in any case.
        host: This machine.
        store: Asked what is there.
        progress: Told what was decided.
        sources: Where recipes and inputs come from; None takes edgebuild's own recipes and asks the host.

    Raises:
        LockError: With `locked`: the file is missing, broken or does not fit the recipes. Else: it cannot be written.
        ToolError: Something cannot be resolved.
    """
    source = sources or Sources(host=host, store=store, progress=progress)
    recipes = source.recipes()
    if locked:
        lock = load_lock(path)
        verify_lock(lock, recipes, path)
        progress.note(f"lock: {path} as it stands")
        return lock
    if not update and path.exists():
        lock = load_lock(path)
        if not find_differences(lock, recipes) and _is_at_hand(lock, needed, host, store, source):
            progress.note(f"lock: {path}, all of it in the store; resolve anew with --update-lock")
            return lock
    # The network is met only here: its libraries are slow to import, and most builds do without.
    from edgebuild.resolving import resolve_lock  # noqa: PLC0415

    lock = resolve_lock(host=host, store=store, progress=progress, sources=source)
    write_lock(lock, path)
    return lock


def write_lock(lock: Lock, path: Path) -> None:
    """Write a lock file, whole or not at all; one with the same content is left alone.

    Raises:
        LockError: It cannot be written.
    """
    data = render_lock(lock)
    temporary = path.with_name(f".{path.name}.part")
    try:
        if path.exists() and path.read_bytes() == data:
            return
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise LockError(
            f"{path}: the lock cannot be written: {error.strerror}",
            hint="name another place with --lock FILE",
        ) from error


def verify_lock(lock: Lock, recipes: tuple[Recipe, ...], path: Path) -> None:
    """Refuse a lock that does not fit the recipes.

    Raises:
        LockError: It names the first differences.
    """
    if faults := find_differences(lock, recipes):
        more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise LockError(
            f"{path} does not fit this edgebuild: {'; '.join(faults[:_SHOWN])}{more}",
            hint="resolve anew: run once with --update-lock and without --locked",
            faults=faults,
        )


def find_differences(lock: Lock, recipes: tuple[Recipe, ...]) -> tuple[str, ...]:
    """Compare a lock with what the recipes declare; versions that recipes leave open are the lock's business."""
    entries = {(entry.artifact, str(entry.platform)): entry for entry in lock.artifacts}
    if len(entries) != len(lock.artifacts):
        return ("an artifact stands there twice",)
    wanted = {(recipe.name, str(platform)) for recipe in recipes for platform in PLATFORMS}
    faults = [f"{name} for {platform} is not in it" for name, platform in sorted(wanted - set(entries))]
    faults += [f"{name} for {platform} has no recipe" for name, platform in sorted(set(entries) - wanted)]
    for recipe in recipes:
        for platform in PLATFORMS:
            if (entry := entries.get((recipe.name, str(platform)))) is not None:
                faults += [f"{recipe.name} for {platform}: {fault}" for fault in _faults(entry, recipe)]
    return tuple(faults)


def _faults(entry: LockedArtifact, recipe: Recipe) -> Iterator[str]:
    debs = {item.name for item in entry.inputs if item.kind == "deb"}
    debian = recipe.file.debian
    asked, refused = (set(debian.packages), set(debian.leave_out)) if debian else (set(), debs)
    yield from (f"package {name} is missing" for name in sorted(asked - debs))
    yield from (f"package {name} is not wanted" for name in sorted(refused & debs))
    found = {
        (item.name, item.version, item.sha256, item.host) for item in entry.inputs if item.kind == "pypi"
    }
    pinned = {(item.name, item.version, item.sha256, item.host) for item in recipe.pinned_inputs()}
    yield from (f"{name} {version} is missing" for name, version, _, _ in sorted(pinned - found))
    requirements = {item.project: item for item in recipe.requirements()}
    wheels = found - pinned
    for name, version, sha256, _ in sorted(wheels):
        pin = requirements.get(name)
        if pin is None or sha256 not in pin.hashes:
            yield f"{name} {version} is not what the recipe pins"
    yield from (f"{name} is missing" for name in sorted(set(requirements) - {wheel[0] for wheel in wheels}))


def _is_at_hand(
    lock: Lock,
    needed: tuple[Need, ...],
    host: Host,
    store: Store,
    sources: Sources,
) -> bool:
    """Say whether the build can do without network."""

    def is_missing(need: Need) -> bool:
        key = artifact_key(need.artifact, platform=need.platform, lock=lock, host=host, sources=sources)
        if need.prefix is not None and has_layer(key, need.prefix, store):
            return False
        return store.find("artifact", key) is None

    missing = [(need.artifact, need.platform) for need in needed if is_missing(need)]
    if missing:
        missing += [(tool, Platform.of_machine(host.machine)) for tool in (COMPILER, TOOLCHAIN)]
    return all(
        sources.has(item)
        for name, platform in missing
        for item in lock.inputs(name, platform, machine=host.machine)
    )

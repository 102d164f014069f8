"""Resolves a lock: current Debian packages, and the wheels that pinned requirements mean on each processor."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from edgebuild.artifacts.debian import Resolution, find_archives, resolve_packages
from edgebuild.artifacts.pypi import IndexFile, choose_wheel, find_index_urls, list_files
from edgebuild.artifacts.recipe_file import Recipe
from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.host import Host
from edgebuild.lock import PLATFORMS, Lock, LockedArtifact, LockedInput
from edgebuild.network import Stop, make_client
from edgebuild.oci.platform import LINUX_AMD64, Platform
from edgebuild.progress import Progress


def resolve_lock(
    *,
    host: Host,
    store: Store,
    progress: Progress,
    sources: Sources | None = None,
) -> Lock:
    """Resolve all recipes for both platforms.

    Raises:
        ToolError: A mirror or an index does not answer, or lacks something.
    """
    source = sources or Sources(host=host, store=store, progress=progress)
    recipes = source.recipes()
    with (
        progress.task("resolve Debian packages and wheels") as task,
        closing(Stop()) as stop,
        ThreadPoolExecutor(2, thread_name_prefix="resolve") as pool,
    ):
        task.status("apt and package index")
        try:
            wheels = pool.submit(_resolve_requirements, recipes, host, stop)
            # One after the other: each apt takes 65 MB.
            debian = pool.submit(
                lambda: {
                    platform: _resolve_debian(
                        recipes, platform, host=host, store=store, mirrors=source.mirrors, stop=stop
                    )
                    for platform in PLATFORMS
                }
            )
            resolved = debian.result()
            files = wheels.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    artifacts = []
    for recipe in recipes:
        for platform in PLATFORMS:
            packages = resolved[platform].get(recipe.name)
            inputs = (
                *(_deb_inputs(recipe, packages) if packages else ()),
                *recipe.pinned_inputs(),
                *(_wheel_inputs(recipe, files, platform)),
            )
            artifacts.append(
                LockedArtifact(
                    artifact=recipe.name,
                    platform="linux/amd64" if platform == LINUX_AMD64 else "linux/arm64",
                    inputs=tuple(sorted(inputs, key=lambda item: (item.file, item.host))),
                )
            )
    epoch_s = max((found.epoch_s for closures in resolved.values() for found in closures.values()), default=0)
    return Lock(epoch_s=epoch_s, artifacts=tuple(artifacts))


def _resolve_debian(
    recipes: tuple[Recipe, ...],
    platform: Platform,
    *,
    host: Host,
    store: Store,
    mirrors: tuple[str, ...],
    stop: Stop,
) -> dict[str, Resolution]:
    """Resolve the closures of all recipes for a platform, by the recipe's name."""
    found: dict[str, Resolution] = {}
    for suite in sorted({recipe.file.debian.suite for recipe in recipes if recipe.file.debian}):
        asked = {
            recipe.name: recipe.file.debian.packages
            for recipe in recipes
            if recipe.file.debian and recipe.file.debian.suite == suite
        }
        resolved = resolve_packages(
            tuple(asked.values()),
            architecture=platform.debian,
            archives=find_archives(suite, host=host, mirrors=mirrors),
            host=host,
            store=store,
            stop=stop,
        )
        found |= dict(zip(asked, resolved, strict=True))
    return found


def _resolve_requirements(
    recipes: tuple[Recipe, ...], host: Host, stop: Stop
) -> dict[str, tuple[IndexFile, ...]]:
    """List the files of every project that a requirements file pins."""
    projects = sorted({item.project for recipe in recipes for item in recipe.requirements()})
    if not projects:
        return {}
    urls = find_index_urls(host)
    with make_client(host.environment, stop=stop) as client, ThreadPoolExecutor(8) as pool:
        listed = pool.map(lambda project: list_files(project, urls=urls, client=client), projects)
        return dict(zip(projects, listed, strict=True))


def _deb_inputs(recipe: Recipe, resolution: Resolution) -> Iterator[LockedInput]:
    assert recipe.file.debian is not None
    for package in resolution.packages:
        if package.name not in recipe.file.debian.leave_out:
            yield LockedInput(
                kind="deb",
                name=package.name,
                version=package.version,
                file=package.path.rpartition("/")[2],
                archive="security" if package.archive == "security" else "main",
                path=package.path,
                sha256=package.sha256,
                size_bytes=package.size_bytes,
            )


def _wheel_inputs(
    recipe: Recipe, files: dict[str, tuple[IndexFile, ...]], platform: Platform
) -> Iterator[LockedInput]:
    for requirement in recipe.requirements():
        wheel = choose_wheel(files[requirement.project], requirement, machine=platform.machine)
        yield LockedInput(
            kind="pypi",
            name=requirement.project,
            version=requirement.version,
            file=wheel.file,
            sha256=wheel.sha256,
            size_bytes=wheel.size_bytes,
        )

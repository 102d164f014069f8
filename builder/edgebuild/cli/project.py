"""The project file as commands meet it: found in the working directory or named, and overridden by options."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from edgebuild.cli.options import Session
from edgebuild.errors import ProfileError, UsageError
from edgebuild.gates import QualityGates
from edgebuild.gguf_shards import DEFAULT_SHARD_BYTES
from edgebuild.oci.reference import Reference
from edgebuild.profile import DeviceProfile, load_profile, profile_names
from edgebuild.project import PROJECT_FILE, LoadedProject, load_project
from edgebuild.quantities import parse_shard_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is to be built: what the options say, else the project file, else the defaults.

    Attributes:
        profiles: Devices; no two of one name.
        named: Whether options or a project file chose them.
        model: What `--model` would say.
        references: Names of the image, with tags; empty when there is none.
        key: Path of the private key, or None.
        shard_bytes: A model in one file that is larger is cut into shards of this size; 0 cuts none.
        licence_required: Whether a model without licence is refused.
        gates: What a quantised model must keep, by the project file.
    """

    profiles: tuple[DeviceProfile, ...]
    named: bool
    model: str
    references: tuple[Reference, ...]
    key: str | None
    shard_bytes: int
    licence_required: bool
    gates: QualityGates


def project_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--project`."""
    return click.option(
        "--project",
        metavar="FILE",
        help=f"Project file; options override it. [default: {PROJECT_FILE}, if it is there]",
    )(function)


def find_project(project: str | None, *, session: Session) -> LoadedProject | None:
    """Load the project file that is named, or the one in the working directory.

    Raises:
        UsageError: The one named is not there.
        ProfileError: It breaks a rule.
    """
    path = session.host.path(project or PROJECT_FILE)
    if not path.is_file():
        if project is None:
            return None
        raise UsageError(f"{path}: no such project file", hint="write one with `edgebuild init`")
    return load_project(path)


def gather_wishes(
    project: LoadedProject | None,
    *,
    profiles: tuple[str, ...],
    model: str | None,
    tags: tuple[str, ...],
    key: str | None,
    shard_size: str | None,
    session: Session,
) -> Wishes:
    """Lay the options over the project file.

    Args:
        project: The project file, or None.
        profiles: `--profile`; empty when not given.
        model: `--model`.
        tags: `--tag`; empty when not given.
        key: `--sign`.
        shard_size: `--shard-size`.
        session: The command's.

    Raises:
        UsageError: An option is no good, or a profile is given twice.
        ProfileError: A profile is no good.
    """
    here = session.host.working_directory
    references = tuple(_reference(tag) for tag in tags)
    if len({reference.name for reference in references}) > 1:
        raise UsageError(
            "--tag names several repositories", hint="push the layout to the others: edgebuild push"
        )
    if profiles or project is None:
        loaded = tuple(load_profile(name, working_directory=here) for name in profiles or profile_names())
    else:
        loaded = _load_profiles(project)
    references = references or (project.references if project else ())
    _refuse_twice(loaded, references)
    return Wishes(
        profiles=loaded,
        named=bool(profiles) or project is not None,
        model=model or (project.model if project else "demo"),
        references=references,
        key=key or (project.key if project else None),
        shard_bytes=_shard_bytes(shard_size, project),
        licence_required=project.project.gates.licence_required if project else False,
        gates=project.project.gates if project else QualityGates(),
    )


def _shard_bytes(given: str | None, project: LoadedProject | None) -> int:
    if given is not None:
        try:
            return int(str(parse_shard_size(given)))
        except ValueError as error:
            raise UsageError(f"--shard-size: {error}", hint="e.g. --shard-size 512MiB") from error
    stated = None if project is None else project.project.shard_size
    return DEFAULT_SHARD_BYTES if stated is None else stated


def _load_profiles(project: LoadedProject) -> tuple[DeviceProfile, ...]:
    try:
        return tuple(
            load_profile(name, working_directory=project.folder) for name in project.project.profiles
        )
    except ProfileError as error:
        if error.faults:
            raise
        raise ProfileError(f"{project.path}: profiles: {error.message}", hint=error.hint) from error


def _reference(tag: str) -> Reference:
    target = Reference.parse(tag)
    if target.digest is not None:
        raise UsageError(
            f"--tag {tag} has a digest", hint="the digest comes out of the build; give HOST/REPO:TAG"
        )
    return target if target.tag else target.with_tag("latest")


def _refuse_twice(profiles: tuple[DeviceProfile, ...], references: tuple[Reference, ...]) -> None:
    seen: set[str] = set()
    for profile in profiles:
        if profile.name in seen:
            raise UsageError(
                f"profile {profile.name} is given twice", hint="each profile makes one image; give it once"
            )
        seen.add(profile.name)
        for reference in references:
            reference.with_tag(f"{reference.tag}-{profile.name}")  # refuses one that is too long

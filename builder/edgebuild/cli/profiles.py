"""`edgebuild profiles`: list, show, validate, schema."""

import json
from pathlib import Path

import click

from edgebuild.cli.options import Session, common_options
from edgebuild.cli.tables import render_table
from edgebuild.fit import format_bytes
from edgebuild.profile import load_profile, profile_names, profile_schema


@click.group(name="profiles")
def command() -> None:
    """List, show and check device profiles."""


@command.command("list")
@common_options
def list_profiles(session: Session) -> None:
    """List the profiles that ship with edgebuild."""
    profiles = [load_profile(name, working_directory=Path("/")) for name in profile_names()]
    rows = [
        (p.name, p.platform, p.cpu.model, format_bytes(p.memory), p.quantization, p.description)
        for p in profiles
    ]
    if session.as_json:
        session.give([p.model_dump(mode="json") for p in profiles])
    else:
        session.say(render_table(("name", "platform", "cpu", "memory", "type", "device"), rows))


@command.command("show")
@click.argument("profile")
@common_options
def show(session: Session, profile: str) -> None:
    """Show PROFILE complete, with everything it extends."""
    import yaml  # noqa: PLC0415 - only here

    loaded = load_profile(profile, working_directory=session.host.working_directory)
    document = loaded.model_dump(mode="json", exclude_none=True)
    if session.as_json:
        session.give(document)
        return
    document |= {
        key: format_bytes(document[key]).replace(" ", "") for key in ("memory",) if _is_round(document[key])
    }
    document["reserve"] = f"{loaded.reserve / 10:g}%"
    click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


@command.command("validate")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@common_options
def validate(session: Session, files: tuple[str, ...]) -> None:
    """Check profile FILES; every fault is told with its file, path and line."""
    for file in files:
        path = str(session.host.path(file))
        profile = load_profile(
            path if path.endswith((".yaml", ".yml")) or "/" in path else f"./{path}",
            working_directory=session.host.working_directory,
        )
        session.say(
            f"{file}: ok ({profile.name}, {profile.platform}, {format_bytes(profile.budget_bytes)} for the server)"
        )
    session.give({"valid": list(files)})


@command.command("schema")
def schema() -> None:
    """Print the JSON Schema of profile files, for editors."""
    click.echo(json.dumps(profile_schema(), indent=2, ensure_ascii=False))


def _is_round(size_bytes: int) -> bool:
    return size_bytes % 2**20 == 0

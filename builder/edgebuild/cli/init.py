"""`edgebuild init`: write a project file."""

import json
from string import Template

import click

from edgebuild.artifacts.files import write_atomically
from edgebuild.cli.options import Session, common_options
from edgebuild.data import data_path
from edgebuild.errors import ToolError, UsageError
from edgebuild.model.reference import parse_model_reference
from edgebuild.profile import load_profile
from edgebuild.project import PROJECT_FILE, load_project, project_schema


@click.command(name="init")
@click.option("--model", default="demo", show_default=True, metavar="MODEL", help="Model, as for `image`.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    default=("pi4",),
    show_default=True,
    metavar="NAME|FILE",
    help="Device profile; may be given several times.",
)
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of project files instead, for editors.")
@common_options
def command(session: Session, model: str, profiles: tuple[str, ...], force: bool, schema: bool) -> None:
    """Write edgebuild.yaml, with comments, into the working directory."""
    if schema:
        click.echo(json.dumps(project_schema(), indent=2, ensure_ascii=False))
        return
    path = session.host.path(PROJECT_FILE)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", hint="edit it, or replace it with --force")
    # What cannot be used is not written down.
    parse_model_reference(model)
    for profile in profiles:
        load_profile(profile, working_directory=session.host.working_directory)
    template = Template((data_path("templates") / "project" / PROJECT_FILE).read_text("utf-8"))
    text = template.substitute(
        model=_yaml(model), profiles=f"[{', '.join(_yaml(profile, in_list=True) for profile in profiles)}]"
    )
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise ToolError(f"{path}: cannot be written: {error.strerror}", hint="check the folder") from error
    load_project(path)
    session.say(f"wrote {path.name}; `edgebuild image` builds what it says")
    session.give({"project": str(path)})


def _yaml(text: str, *, in_list: bool = False) -> str:
    """Write a text as YAML, plain where that means the same."""
    import yaml  # noqa: PLC0415 - only here

    try:
        is_plain = yaml.safe_load(f"[{text}]" if in_list else text) == ([text] if in_list else text)
    except yaml.YAMLError:
        is_plain = False
    return text if is_plain else json.dumps(text, ensure_ascii=False)

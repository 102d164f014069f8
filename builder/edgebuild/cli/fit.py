"""`edgebuild fit`: the memory arithmetic, without building anything."""

import click

from edgebuild.artifacts.store import Store
from edgebuild.choice import make_selection, make_versions, wanted_types
from edgebuild.cli.options import Session, common_options
from edgebuild.cli.project import find_project, gather_wishes, project_option
from edgebuild.cli.quantization import quantization_option
from edgebuild.cli.selection import render_selection, selection_document
from edgebuild.errors import PlanError
from edgebuild.model.source import find_model


@click.command(name="fit")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME|FILE",
    help="Device profile; may be given several times. [default: all built-in ones]",
)
@click.option("--model", metavar="MODEL", help="Model, as for `image`. [default: demo]")
@quantization_option
@click.option(
    "--imatrix",
    metavar="FILE|auto",
    help="Count types that need an importance matrix too; auto computes none here.",
)
@project_option
@common_options
def command(
    session: Session,
    project: str | None,
    profiles: tuple[str, ...],
    model: str | None,
    quantization: str | None,
    imatrix: str | None,
) -> None:
    """Show whether a model fits a device, with the arithmetic.

    The exit code is 4 when a device that was named does not fit.
    """
    has_matrix = _has_matrix(imatrix, session=session)
    wishes = gather_wishes(
        find_project(project, session=session),
        profiles=profiles,
        model=model,
        tags=(),
        key=None,
        shard_size=None,
        session=session,
    )
    with find_model(
        wishes.model,
        wanted=wanted_types(wishes.profiles, override=quantization),
        host=session.host,
        store=Store(session.host.cache_directory, progress=session.progress),
        progress=session.progress,
    ) as found:
        spec = found.spec
    versions = make_versions(spec, wishes.profiles, override=quantization, has_matrix=has_matrix)
    selections = [
        make_selection(spec, profile, versions=versions, override=quantization, has_matrix=has_matrix)
        for profile in wishes.profiles
    ]
    for selection in selections:
        session.say(render_selection(selection, model_name=spec.name))
        session.say("")
    session.give({"model": spec.name, "fits": [selection_document(selection) for selection in selections]})
    refused = [selection for selection in selections if selection.chosen is None]
    if wishes.named and refused:
        raise PlanError(
            f"{spec.name} does not fit: {'; '.join(selection.refusal for selection in refused)}",
            hint="take a smaller model, a smaller --quantization or auto, or a profile with less context or more memory",
        )


def _has_matrix(imatrix: str | None, *, session: Session) -> bool:
    """Tell whether there is an importance matrix; one in a file is looked at, as `image` would.

    Raises:
        ModelError: The file is none.
    """
    if imatrix not in {None, "auto"}:
        from edgebuild.model.importance import load_matrix  # noqa: PLC0415 - a moment that others do without

        load_matrix(session.host.path(imatrix))
    return imatrix is not None

"""`edgebuild fit`: the memory arithmetic, without building anything."""

import click

from edgebuild.artifacts.store import Store
from edgebuild.cli.options import Session, common_options
from edgebuild.cli.project import find_project, gather_wishes, project_option
from edgebuild.cli.tables import render_table
from edgebuild.errors import PlanError
from edgebuild.fit import Fit, estimate_quantized, format_bytes, make_fit, planned_quantization, wanted_types
from edgebuild.model.source import load_model
from edgebuild.profile import QUANTIZATIONS


@click.command(name="fit")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME|FILE",
    help="Device profile; may be given several times. [default: all built-in ones]",
)
@click.option("--model", metavar="MODEL", help="Model, as for `image`. [default: demo]")
@click.option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS, case_sensitive=False),
    help="Type to quantise a 16-bit model to.",
)
@project_option
@common_options
def command(
    session: Session,
    project: str | None,
    profiles: tuple[str, ...],
    model: str | None,
    quantization: str | None,
) -> None:
    """Show whether a model fits a device, with the arithmetic.

    The exit code is 4 when a device that was named does not fit.
    """
    wishes = gather_wishes(
        find_project(project, session=session),
        profiles=profiles,
        model=model,
        tags=(),
        key=None,
        session=session,
    )
    found = load_model(
        wishes.model,
        wanted=wanted_types(wishes.profiles, override=quantization),
        host=session.host,
        store=Store(session.host.cache_directory, progress=session.progress),
        progress=session.progress,
    )
    fits = []
    for profile in wishes.profiles:
        wanted = planned_quantization(found.spec, profile, override=quantization)
        fits.append(
            make_fit(
                estimate_quantized(found.spec, wanted), profile, is_estimate=wanted != found.spec.quantization
            )
        )
    for fit in fits:
        session.say(render_fit(fit, model_name=found.spec.name))
        session.say("")
    session.give({"model": found.spec.name, "fits": [fit_document(fit) for fit in fits]})
    refused = [fit for fit in fits if fit.refusal]
    if wishes.named and refused:
        raise PlanError(
            f"{found.spec.name} does not fit: {'; '.join(fit.refusal for fit in refused)}",
            hint="take a smaller model, a smaller --quantization, or a profile with less context or more memory",
        )


def render_fit(fit: Fit, *, model_name: str) -> str:
    """Lay out the arithmetic of one device."""
    about = " (size estimated before quantising)" if fit.is_estimate else ""
    rows = [(row.what, row.formula, format_bytes(row.size_bytes)) for row in fit.rows]
    rows.append(("need", "", format_bytes(fit.need_bytes)))
    rows.append(("budget", fit.budget_formula, format_bytes(fit.budget_bytes)))
    verdict = f"does not fit: {fit.refusal}" if fit.refusal else "fits"
    return f"{model_name} as {fit.quantization} on {fit.profile}: {verdict}{about}\n" + render_table(
        ("memory", "how", "size"), rows, right=frozenset({2})
    )


def fit_document(fit: Fit) -> dict[str, object]:
    """Give the arithmetic as JSON."""
    return {
        "profile": fit.profile,
        "quantization": fit.quantization,
        "context_tokens": fit.context_tokens,
        "need_bytes": fit.need_bytes,
        "budget_bytes": fit.budget_bytes,
        "fits": not fit.refusal,
        "refusal": fit.refusal or None,
        "is_estimate": fit.is_estimate,
        "rows": [{"what": row.what, "how": row.formula, "size_bytes": row.size_bytes} for row in fit.rows],
    }

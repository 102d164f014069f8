"""`edgebuild model eval`: quality against size, type by type."""

import click

from edgebuild.artifacts.store import Store
from edgebuild.cli.evaluation import (
    evaluation_options,
    gather_evaluation,
    gather_importance,
    importance_options,
    render_qualities,
)
from edgebuild.cli.options import Session, common_options
from edgebuild.errors import UsageError
from edgebuild.gates import QualityGates
from edgebuild.judging import choose_measures, verify_generates
from edgebuild.model.evaluation.evaluate import Measures
from edgebuild.model.evaluation.plot import verify_plottable, write_plot
from edgebuild.model.source import ModelFile, load_model
from edgebuild.pipeline import evaluate_types
from edgebuild.quality import Quality, quality_document
from edgebuild.quantization import AUTO_QUANTIZATIONS, QUANTIZATIONS, needs_matrix, quality_loss
from edgebuild.request import Context, ImportanceRequest, LockOptions

# Types for models that were trained in them leave next to nothing of any other.
_SENSELESS = 10.0


@click.command(name="eval")
@click.argument("model", required=False, default="demo")
@click.option(
    "--types",
    metavar="TYPE,…|all",
    help="Types of weights to quantise to and measure; all are those that need no importance matrix. [default: 16 bit, Q8_0 and the K-quants]",
)
@evaluation_options
@importance_options
@click.option("--plot", metavar="FILE", help="Draw quality against size: a .png or .svg file (extra `plot`).")
@click.option(
    "--lock",
    "lock_file",
    default="edgebuild.lock",
    show_default=True,
    metavar="FILE",
    help="Lock file: where the engine's sources come from.",
)
@common_options
def command(
    session: Session,
    model: str,
    types: str | None,
    eval_text: str | None,
    eval_tasks: str | None,
    eval_tokens: int,
    imatrix: str | None,
    calibration: str | None,
    plot: str | None,
    lock_file: str,
) -> None:
    """Measure what each type of weights makes of MODEL, the demo model by default.

    Perplexity and KL divergence from the original on a text, exact answers to tasks, and size. A model that is not in 16
    bit is measured alone. What was measured once is taken from the store.
    """
    importance = gather_importance(imatrix, calibration, session=session)
    wanted = _types(types, has_matrix=importance is not None)
    evaluation = gather_evaluation(
        is_wanted=True,
        text=eval_text,
        tasks=eval_tasks,
        tokens=eval_tokens,
        gates=QualityGates(),
        session=session,
    )
    host = session.host
    picture = None if plot is None else host.path(plot)
    if picture is not None:
        verify_plottable(picture)
    store = Store(host.cache_directory, progress=session.progress)
    found = load_model(
        model, wanted=("F16", "BF16", "F32"), host=host, store=store, progress=session.progress
    )
    if not found.spec.is_unquantized and types is not None:
        raise UsageError(
            f"{found.spec.file_name} is {found.spec.quantization} already and cannot be made {types}",
            hint="leave --types out to measure it as it is, or give the 16-bit GGUF of this model",
        )
    verify_generates(found.spec, "model eval")
    measures = choose_measures(found, evaluation)
    qualities = evaluate_types(
        found,
        wanted,
        measures,
        importance,
        LockOptions(path=host.path(lock_file), locked=False, update=False, mirrors=()),
        Context(host=host, store=store, progress=session.progress),
    )
    if picture is not None:
        write_plot(picture, found.spec.name, qualities)
    session.say(_render(found, measures, importance, qualities))
    session.give(
        {
            "model": found.spec.name,
            "types": [quality_document(quality) for quality in qualities],
            "plot": None if picture is None else str(picture),
        }
    )


def _types(text: str | None, *, has_matrix: bool) -> tuple[str, ...]:
    """Read `--types`."""
    if text is None:
        return AUTO_QUANTIZATIONS
    if text == "all":
        return tuple(
            name
            for name in QUANTIZATIONS
            if (has_matrix or not needs_matrix(name)) and quality_loss(name) < _SENSELESS
        )
    names = tuple(dict.fromkeys(name.strip().upper() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in QUANTIZATIONS]:
        raise UsageError(
            f"--types: unknown type {unknown[0]!r}", hint=f"known are {', '.join(QUANTIZATIONS)}"
        )
    if needy := [name for name in names if needs_matrix(name) and not has_matrix]:
        raise UsageError(f"--types: {needy[0]} needs an importance matrix", hint="add --imatrix auto or FILE")
    if not names:
        raise UsageError("--types names no type", hint="give e.g. Q4_K_M,Q8_0 or all")
    return names


def _render(
    model: ModelFile,
    measures: Measures,
    importance: ImportanceRequest | None,
    qualities: tuple[Quality, ...],
) -> str:
    lines = [f"{model.spec.name}, {model.spec.parameters / 1e6:.1f} M parameters"]
    if measures.text is not None and qualities[0].text is not None:
        read = qualities[0].text
        lines.append(f"text {measures.text.name}: {read.scored_tokens} tokens scored")
    if measures.tasks is not None:
        lines.append(f"tasks {measures.tasks.name}: {len(measures.tasks.tasks)}, answered greedily")
    if importance is not None:
        name = "computed" if importance.matrix is None else importance.matrix.name
        lines.append(f"importance matrix: {name}")
    return "\n".join(lines) + "\n" + render_qualities(qualities)

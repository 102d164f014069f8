"""`edgebuild model prune`: a checkpoint without the layers that matter least."""

import click

from edgebuild.artifacts.store import Store
from edgebuild.cli.options import Session, common_options
from edgebuild.cli.tables import render_table
from edgebuild.model.environment import torch_environment
from edgebuild.model.smaller.prune import MEASURES, Pruned, PruneRequest, prune_model


@click.command(name="prune")
@click.argument("model")
@click.option("--layers", type=click.IntRange(1), metavar="N", help="Leave N layers out.")
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Keep N layers.")
@click.option(
    "--text",
    required=True,
    metavar="FILE",
    help="Text like what the model will see: plain UTF-8, or JSON lines (.jsonl).",
)
@click.option("--output", required=True, metavar="DIR", help="Folder to write.")
@click.option(
    "--tasks",
    metavar="FILE",
    help="JSON lines of prompt and expected; counts exact answers before and after.",
)
@click.option(
    "--by",
    type=click.Choice(tuple(MEASURES)),
    default="influence",
    show_default=True,
    help="How layers are chosen: by how far they turn their input (one pass), or by the loss without them (many passes).",
)
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=16384,
    show_default=True,
    metavar="TOKENS",
    help="How much of the text layers are measured on.",
)
@click.option(
    "--context",
    type=click.IntRange(16),
    default=512,
    show_default=True,
    metavar="TOKENS",
    help="Longest piece of text.",
)
@click.option("--force", is_flag=True, help="Replace a checkpoint that is there.")
@common_options
def command(
    session: Session,
    model: str,
    layers: int | None,
    keep: int | None,
    text: str,
    output: str,
    tasks: str | None,
    by: str,
    sample: int,
    context: int,
    force: bool,
) -> None:
    """Leave out the layers of the checkpoint in folder MODEL that matter least on a text.

    What remains is a checkpoint like any other. It has forgotten something: see the figures before and after, and
    teach it again with `edgebuild model distill`.
    """
    path = session.host.path
    request = PruneRequest(
        model=path(model),
        output=path(output),
        text=path(text),
        tasks=None if tasks is None else path(tasks),
        drop=layers,
        keep=keep,
        by=by,
        context_tokens=context,
        sample_tokens=sample,
        replace=force,
    )
    store = Store(session.host.cache_directory, progress=session.progress)
    pruned = prune_model(
        request,
        environment=lambda: torch_environment(host=session.host, store=store, progress=session.progress),
        host=session.host,
        progress=session.progress,
    )
    session.say(_render(pruned))
    session.give({"output": str(pruned.output), **pruned.to_json()})


def _render(pruned: Pruned) -> str:
    layers = [
        (str(layer), f"{influence:.4f}", "left out" if layer in pruned.dropped else "")
        for layer, influence in enumerate(pruned.influences)
    ]
    return "\n".join(
        [
            render_table(("layer", "influence", ""), layers, right=frozenset({0, 1})),
            "",
            render_table(("", "before", "after"), pruned.rows(), right=frozenset({1, 2})),
            f"wrote {pruned.output}",
        ]
    )

"""`edgebuild model`: what is done to models before they are baked, a module a command."""

import click

from edgebuild.cli.lazy import LazyGroup

_COMMANDS = {
    "eval": ("edgebuild.cli.model_eval", "Measure what each type of weights makes of a model."),
    "prune": ("edgebuild.cli.model_prune", "Leave out the layers of a checkpoint that matter least."),
    "distill": ("edgebuild.cli.model_distill", "Train a small checkpoint on a large one's answers."),
    "setup": (
        "edgebuild.cli.model_setup",
        "Set up torch and transformers, which converting checkpoints needs.",
    ),
}


@click.group(name="model", cls=LazyGroup, modules=_COMMANDS)
def command() -> None:
    """Prepare models before they are baked."""

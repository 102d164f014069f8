"""`edgebuild model`: what is done to models before they are baked, a module a command."""

import click

from edgebuild.cli.lazy import LazyGroup

_COMMANDS = {
    "eval": ("edgebuild.cli.model_eval", "Measure what each type of weights makes of a model."),
    "setup": (
        "edgebuild.cli.model_setup",
        "Set up torch and transformers, which converting checkpoints needs.",
    ),
}


@click.group(name="model", cls=LazyGroup, modules=_COMMANDS)
def command() -> None:
    """Prepare models before they are baked."""

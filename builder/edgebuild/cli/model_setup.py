"""`edgebuild model setup`: what converting checkpoints needs."""

import click

from edgebuild.artifacts.store import Store
from edgebuild.cli.options import Session, common_options


@click.command(name="setup")
@common_options
def command(session: Session) -> None:
    """Set up torch and transformers, which converting checkpoints needs, in the store.

    `edgebuild image` does it by itself when it meets a checkpoint; with --locked it does not.
    """
    from edgebuild.model.environment import torch_environment  # noqa: PLC0415 - `edgebuild --help` needs it not

    store = Store(session.host.cache_directory, progress=session.progress)
    environment = torch_environment(host=session.host, store=store, progress=session.progress)
    session.give(
        {
            "environment": environment.identity,
            "packages": None if environment.packages is None else str(environment.packages),
        }
    )
    session.say(
        f"torch and transformers are set up: {environment.packages or f'this Python has them ({environment.identity})'}"
    )

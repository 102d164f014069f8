"""`edgebuild cache`: info, prune, verify."""

import click


@click.group(name="cache")
def command() -> None:
    """Look after the store: what was downloaded, compiled and compressed."""

"""`edgebuild cache`: info, prune, verify."""

import click

from edgebuild.artifacts.store import Store
from edgebuild.cli.options import Session, common_options
from edgebuild.cli.tables import render_table
from edgebuild.errors import StoreError
from edgebuild.fit import format_bytes


@click.group(name="cache")
def command() -> None:
    """Look after the store: what was downloaded, compiled and compressed."""

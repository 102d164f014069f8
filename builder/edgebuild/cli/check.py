"""`edgebuild check`: the independent checker over a layout."""

import click

from edgebuild.cli.options import Session, common_options
from edgebuild.cli.places import layout_path
from edgebuild.oci.check import verify_layout


@click.command(name="check")
@click.argument("layout")
@common_options
def command(session: Session, layout: str) -> None:
    """Read LAYOUT back and check every byte and rule: sizes, digests, diff_ids, and what a layer may hold."""
    path = layout_path(layout, session=session)
    verify_layout(path)
    session.say(f"{path}: every rule holds")
    session.give({"layout": str(path), "faults": []})

"""`edgebuild push`: a layout into a registry."""

import click

from edgebuild.cli.options import Session, common_options
from edgebuild.cli.passwords import load_key, password_option
from edgebuild.cli.places import layout_path
from edgebuild.errors import UsageError
from edgebuild.oci.layout import read_layout
from edgebuild.oci.reference import Reference
from edgebuild.registry.copy import push_layout


@click.command(name="push")
@click.argument("layout")
@click.argument("reference", metavar="HOST/REPO:TAG")
@click.option("--sign", "key", metavar="KEY", help="Sign for this reference with this private key.")
@password_option
@common_options
def command(
    session: Session, layout: str, reference: str, key: str | None, password_file: str | None
) -> None:
    """Copy LAYOUT to a registry, signatures included: what the registry has is not sent, tags come last."""
    path = layout_path(layout, session=session)
    target = Reference.parse(reference)
    if target.digest is not None:
        raise UsageError(
            f"{reference} has a digest", hint="the digest is the layout's own; give HOST/REPO:TAG"
        )
    signer = load_key(key, password_file, session=session)
    report = push_layout(
        read_layout(path),
        target if target.tag else target.with_tag("latest"),
        environment=session.host.environment,
        progress=session.progress,
    )
    del signer, report

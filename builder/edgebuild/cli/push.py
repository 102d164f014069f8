"""`edgebuild push`: a layout into a registry."""

import click

from edgebuild.cli.options import Session, common_options
from edgebuild.cli.passwords import load_key, password_option
from edgebuild.cli.places import layout_path
from edgebuild.errors import UsageError
from edgebuild.oci.layout import read_layout
from edgebuild.oci.reference import Reference
from edgebuild.registry.layouts import push_layout
from edgebuild.registry.push import Way, open_sink
from edgebuild.signing.sign import sign_image


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
    host = session.host
    source = read_layout(layout_path(layout, session=session))
    target = Reference.parse(reference)
    if target.digest is not None:
        raise UsageError(
            f"{reference} has a digest", hint="the digest is the layout's own; give HOST/REPO:TAG"
        )
    target = target if target.tag else target.with_tag("latest")
    signer = load_key(key, password_file, session=session)
    with open_sink(target, environment=host.environment, progress=session.progress) as sink:
        sink.check_access()
        pushed = push_layout(source, target, sink=sink, progress=session.progress)
        signed = (
            ()
            if signer is None
            else sign_image(sink, pushed.digest, signer, references=(target,), epoch_s=None)
        )
    sent, present = pushed.report.bytes_by(Way.SENT), pushed.report.bytes_by(Way.PRESENT)
    session.say(
        f"pushed {target.with_digest(pushed.digest)}: {sent / 1e6:.1f} MB sent, {present / 1e6:.1f} MB were there; tags {', '.join(pushed.tags)}"
    )
    session.give(
        {
            "digest": str(pushed.digest),
            "tag": str(target),
            "tags": list(pushed.tags),
            "sent_bytes": sent,
            "present_bytes": present,
            "signed": [str(item.digest) for item in signed],
        }
    )

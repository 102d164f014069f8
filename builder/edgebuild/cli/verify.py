"""`edgebuild verify`: signature, index, manifests and every blob."""

from pathlib import Path

import click

from edgebuild.cli.options import Session, common_options
from edgebuild.cli.places import find_place
from edgebuild.errors import SignatureError
from edgebuild.oci.reference import Reference
from edgebuild.registry.client import open_client
from edgebuild.signing.verify import (
    NotVerifiedError,
    load_verifying_key,
    verify_in_layout,
    verify_in_registry,
)
from edgeverify.tree import Verified


@click.command(name="verify")
@click.argument("place", metavar="REF|LAYOUT")
@click.option("--key", required=True, metavar="PUB", help="Public key of the signer.")
@common_options
def command(session: Session, place: str, key: str) -> None:
    """Verify an image in a registry or layout with the signer's public key.

    Checked are the signatures of the index and of every platform's manifest, and every blob's hash. The exit code is 8
    when anything is missing or false.
    """
    found = find_place(place, session=session)
    public = load_verifying_key(session.host.path(key))
    try:
        if isinstance(found, Path):
            verified = verify_in_layout(found, public)
        else:
            verified = (_verify_in_registry(found, public, session),)
    except NotVerifiedError as error:
        for reason in error.reasons:
            click.echo(f"  {reason}", err=True)
        raise
    for item in verified:
        session.say(
            f"verified {item.digest}: signed, {len(item.manifests)} manifests, {item.blobs} blobs, {item.size_bytes / 1e6:.1f} MB hashed"
        )
    session.give(
        {"verified": [{"digest": item.digest, "manifests": list(item.manifests)} for item in verified]}
    )


def _verify_in_registry(reference: Reference, public: object, session: Session) -> Verified:
    with open_client(reference, environment=session.host.environment, progress=session.progress) as client:
        name = str(reference.digest) if reference.digest is not None else reference.tag or "latest"
        manifest = client.find_manifest(name)
        if manifest is None:
            raise SignatureError(f"{reference} is not there", hint="check the name and the tag")
        tagged = None if reference.digest is not None else str(reference.with_tag(reference.tag or "latest"))
        return verify_in_registry(
            client, manifest.digest, public, progress=session.progress, reference=tagged
        )

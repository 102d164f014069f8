"""`edgebuild verify`: signature, index, manifests and every blob."""

from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric import ec

from edgebuild.cli.options import Session, common_options
from edgebuild.cli.places import find_place
from edgebuild.errors import SignatureError, UsageError
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
@click.option(
    "--name", metavar="HOST/REPO:TAG", help="Demand a signature that names this reference, as podman does."
)
@common_options
def command(session: Session, place: str, key: str, name: str | None) -> None:
    """Verify an image in a registry or layout with the signer's public key.

    Checked are the signatures of the index and of every platform's manifest, and every blob's hash. The exit code is 8
    when anything is missing or false. A tag says nothing about what was signed under it: with --name, a registry cannot
    answer for one tag with the signed image of another.
    """
    found = find_place(place, session=session)
    public = load_verifying_key(session.host.path(key))
    try:
        if isinstance(found, Path):
            if name is not None:
                raise UsageError("--name is for images in a registry", hint="leave it out for a layout")
            verified = verify_in_layout(found, public)
        else:
            verified = (_verify_in_registry(found, public, name, session),)
    except NotVerifiedError as error:
        for reason in error.reasons[1:]:
            click.echo(f"  {reason}", err=True)
        raise
    for item in verified:
        session.say(
            f"verified {item.digest}: {len(item.signatures)} documents signed, "
            f"{item.blob_count} blobs hashed ({item.blob_bytes / 1e6:.1f} MB)"
        )
    documents = [
        {
            "digest": item.digest,
            "signed": [digest for digest, _ in item.signatures],
            "blob_count": item.blob_count,
            "blob_bytes": item.blob_bytes,
        }
        for item in verified
    ]
    session.give({"verified": documents})


def _verify_in_registry(
    reference: Reference, public: ec.EllipticCurvePublicKey, name: str | None, session: Session
) -> Verified:
    with open_client(reference, environment=session.host.environment, progress=session.progress) as client:
        asked = str(reference.digest) if reference.digest is not None else reference.tag or "latest"
        manifest = client.find_manifest(asked)
        if manifest is None:
            raise SignatureError(f"{reference} is not there", hint="check the name and the tag")
        digest = manifest.descriptor.digest
        return verify_in_registry(client, digest, public, progress=session.progress, reference=name)

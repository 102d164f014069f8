"""`edgebuild keys`: make key pairs."""

import click

from edgebuild.cli.options import Session, common_options
from edgebuild.cli.passwords import password_option, read_password
from edgebuild.signing.keys import generate_key_pairs


@click.group(name="keys")
def command() -> None:
    """Make key pairs for signing."""


@command.command("generate")
@click.option("--output", default=".", show_default=True, metavar="DIR", help="Folder to write to.")
@password_option
@common_options
def generate(session: Session, output: str, password_file: str | None) -> None:
    """Make two pairs: cosign.key/.pub signs images, attest.key/.pub signs attestations.

    They are ECDSA P-256 in cosign's encrypted format, so cosign uses them too. Existing keys are never overwritten.
    """
    password = read_password(password_file, session=session, is_new=True)
    folder = session.host.path(output)
    pairs = generate_key_pairs(folder, image_password=password, attestation_password=password)
    for pair in pairs:
        session.say(f"{pair.private} (keep it secret), {pair.public}")
    session.give({"pairs": [{"private": str(pair.private), "public": str(pair.public)} for pair in pairs]})

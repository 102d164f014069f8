"""`edgebuild sign`: sign an image where it lies."""

from pathlib import Path

import click

from edgebuild.artifacts.store import Store
from edgebuild.cli.options import Session, common_options
from edgebuild.cli.passwords import load_key, password_option
from edgebuild.cli.places import find_place
from edgebuild.errors import SignatureError, UsageError
from edgebuild.oci.layout import LayoutSink, read_layout
from edgebuild.oci.reference import Reference
from edgebuild.registry.push import open_sink
from edgebuild.signing.keys import SigningKey
from edgebuild.signing.sign import Signed, sign_image


@click.command(name="sign")
@click.argument("place", metavar="REF|LAYOUT")
@click.option("--key", required=True, metavar="KEY", help="Private key.")
@click.option(
    "--tag",
    "references",
    multiple=True,
    metavar="HOST/REPO:TAG",
    help="For a layout: the name it is to be published as.",
)
@password_option
@common_options
def command(
    session: Session, place: str, key: str, references: tuple[str, ...], password_file: str | None
) -> None:
    """Sign an image in a registry or layout: both of cosign's forms, on the index and on every manifest.

    The older form names the published reference; without a tag only the bundle form is written.
    """
    found = find_place(place, session=session)
    signer = load_key(key, password_file, session=session)
    assert signer is not None
    named = tuple(Reference.parse(text) for text in references)
    signed = (
        _sign_layout(found, signer, named, session)
        if isinstance(found, Path)
        else _sign_in_registry(found, signer, named, session)
    )
    for item in signed:
        what = ", ".join(item.references) or "bundle form only: no tag was given"
        session.say(f"signed {item.digest} ({what})")
    session.give(
        {
            "signed": [{"digest": str(item.digest), "references": list(item.references)} for item in signed],
            "key": Path(key).name,
        }
    )


def _sign_layout(
    path: Path, signer: SigningKey, references: tuple[Reference, ...], session: Session
) -> tuple[Signed, ...]:
    layout = read_layout(path)
    store = Store(session.host.cache_directory, progress=session.progress)
    with LayoutSink(path, progress=session.progress, seals=store, extend=True) as sink:
        return sign_image(
            sink,
            layout.main().digest,
            signer,
            references=references,
            epoch_s=None,
        )


def _sign_in_registry(
    reference: Reference, signer: SigningKey, references: tuple[Reference, ...], session: Session
) -> tuple[Signed, ...]:
    if references:
        raise UsageError("--tag is for layouts; an image in a registry has its name", hint="leave --tag out")
    with open_sink(reference, environment=session.host.environment, progress=session.progress) as sink:
        name = str(reference.digest) if reference.digest is not None else reference.tag or "latest"
        manifest = sink.client.find_manifest(name)
        if manifest is None:
            raise SignatureError(
                f"{reference} is not there to be signed", hint="push it first: edgebuild push LAYOUT REF"
            )
        named = (
            ()
            if reference.digest is not None and not reference.tag
            else (reference.with_tag(reference.tag or "latest"),)
        )
        return sign_image(
            sink,
            manifest.descriptor.digest,
            signer,
            references=named,
            epoch_s=None,
        )

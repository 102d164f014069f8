"""`edgebuild archive`: an image as a docker-archive, which every Docker loads."""

import sys
from contextlib import suppress

import click

from edgebuild.cli.options import Session, common_options
from edgebuild.cli.places import layout_path
from edgebuild.cli.streams import writing
from edgebuild.errors import ImageError, ToolError, UsageError
from edgebuild.oci.archive import write_docker_archive
from edgebuild.oci.image import Image
from edgebuild.oci.index import Index
from edgebuild.oci.layout import read_layout


@click.command(name="archive")
@click.argument("layout")
@click.option(
    "--profile", metavar="NAME", help="Profile of the image; may be left out where the layout holds one."
)
@click.option("--name", metavar="REPO:TAG", help="Name after loading. [default: <model>:<profile>]")
@click.option("--output", metavar="FILE", help="File to write. [default: standard output]")
@common_options
def command(session: Session, layout: str, profile: str | None, name: str | None, output: str | None) -> None:
    """Write an image of LAYOUT as a file for `docker load`, Docker 20.10 and balenaEngine included.

    edgebuild archive build --profile pi4 | docker load
    """
    if output is None and session.as_json:
        raise UsageError("--json and the archive cannot both go to standard output", hint="add --output FILE")
    image = _find_image(read_layout(layout_path(layout, session=session)).index(), profile, layout)
    names = (name or default_name(image),)
    if output is None:
        if sys.stdout.isatty():
            raise UsageError(
                "an archive is nothing to look at", hint="pipe it into `docker load`, or give --output FILE"
            )
        with writing(sys.stdout):
            write_docker_archive(image, sys.stdout.buffer, names=names, progress=session.progress)
        return
    path = session.host.path(output)
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as out:
            write_docker_archive(image, out, names=names, progress=session.progress)
        partial.replace(path)
    except OSError as error:
        raise ToolError(
            f"{path} cannot be written: {error.strerror}", hint="make room or choose another place"
        ) from error
    finally:
        with suppress(OSError):  # the folder itself may be what is not there
            partial.unlink(missing_ok=True)
    session.say(f"{path}: {names[0]}")
    session.give({"file": str(path), "name": names[0], "digest": str(image.digest)})


def default_name(image: Image) -> str:
    """Name an image after its model and profile, as Docker wants it: in lower case."""
    return (
        f"{image.labels().get('dev.edgebuild.model.name', 'edgebuild').lower()}:{image.profile or 'latest'}"
    )


def _find_image(index: Index, profile: str | None, layout: str) -> Image:
    known = ", ".join(image.profile for image in index.images)
    if profile is None:
        if len(index.images) == 1:
            return index.images[0]
        raise UsageError(f"{layout} holds several images", hint=f"say which with --profile: {known}")
    for image in index.images:
        if image.profile == profile:
            return image
    raise ImageError(f"{layout} holds no image for {profile!r}", hint=f"it holds {known}")

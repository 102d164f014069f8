"""`edgebuild test`: the smoke test over a layout."""

import click

from edgebuild.artifacts.store import Store
from edgebuild.cli.options import Session, common_options
from edgebuild.cli.places import layout_path
from edgebuild.pipeline import test_layout
from edgebuild.request import Context, LockOptions


@click.command(name="test")
@click.argument("layout")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help="Test this image only; may be given several times.",
)
@click.option(
    "--lock",
    "lock_file",
    default="edgebuild.lock",
    show_default=True,
    metavar="FILE",
    help="Lock file: where the emulator comes from.",
)
@common_options
def command(session: Session, layout: str, profiles: tuple[str, ...], lock_file: str) -> None:
    """Start the images of LAYOUT on their processor models and ask each a question.

    The image's real entrypoint runs under qemu-user, as the image's user, with a read-only root, without Docker.
    """
    host = session.host
    store = Store(host.cache_directory, progress=session.progress)
    options = LockOptions(path=host.path(lock_file), locked=False, update=False, mirrors=())
    context = Context(host=host, store=store, progress=session.progress)
    tested = test_layout(layout_path(layout, session=session), profiles, options, context)
    for image, seen in tested:
        session.say(
            f"{image.profile}: {seen.cpu_variant} on {seen.cpu_model}, ready in {seen.ready_s:.1f} s (emulated), answered: {' '.join(seen.answer.split())}"
        )
    session.give(
        {
            "images": [
                {
                    "profile": image.profile,
                    "digest": str(image.digest),
                    "cpu_model": seen.cpu_model,
                    "cpu_variant": seen.cpu_variant,
                    "ready_s": seen.ready_s,
                    "answer": seen.answer,
                    "vector_length": seen.vector_length,
                }
                for image, seen in tested
            ]
        }
    )

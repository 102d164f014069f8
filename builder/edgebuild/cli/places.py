"""REF or LAYOUT: an image is named by a reference into a registry or by the folder of a layout."""

from pathlib import Path

from edgebuild.cli.options import Session
from edgebuild.errors import ImageError, UsageError
from edgebuild.oci.reference import Reference


def find_place(text: str, *, session: Session) -> Path | Reference:
    """Tell a layout's folder from a reference; a folder that is there wins.

    Raises:
        UsageError: It is neither.
        ImageError: It looks like a path and nothing is there.
    """
    path = session.host.path(text)
    if path.is_dir():
        return path
    if text.startswith((".", "/", "~")) or "/" not in text:
        raise ImageError(
            f"{text}: no such layout",
            hint="give the folder of an OCI layout, or HOST/REPO:TAG for an image in a registry",
        )
    try:
        return Reference.parse(text)
    except UsageError as error:
        raise UsageError(
            f"{text} is neither a folder nor a reference: {error.message}", hint=error.hint
        ) from error


def layout_path(text: str, *, session: Session) -> Path:
    """Find the folder of a layout.

    Raises:
        ImageError: There is none.
    """
    path = session.host.path(text)
    if not path.is_dir():
        raise ImageError(f"{path}: no such layout", hint="build one with `edgebuild image --output DIR`")
    return path

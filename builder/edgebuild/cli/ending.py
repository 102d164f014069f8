"""How a command ends when it does not end well."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from edgebuild.errors import EdgebuildError, ProfileError


class InterruptedBuildError(EdgebuildError):
    """Ctrl-C, SIGTERM or SIGHUP. The exit code is the one that shells give to what SIGINT ended."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted", hint="nothing is lost: what was finished stays in the store")


def tell_error(error: EdgebuildError, *, as_json: bool) -> int:
    """Tell what went wrong and what to do, and return the exit code."""
    faults = error.faults if isinstance(error, ProfileError) else ()
    click.echo(f"error: {error.message}", err=True)
    for fault in faults:
        click.echo(f"  {fault}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    if as_json:
        document = {
            "message": error.message,
            "hint": error.hint,
            "faults": list(faults),
            "exit_code": error.exit_code,
        }
        click.echo(json.dumps({"error": document}, ensure_ascii=False))
    return error.exit_code


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end a command as Ctrl-C does: everything is cleaned up on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

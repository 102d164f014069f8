"""The three standard streams, whatever state the command was started with."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import click

from edgebuild.errors import ToolError

NOBODY_READS = 141


def mend_streams() -> None:
    """Make all three streams usable: closed ones lead nowhere, and what an encoding lacks becomes a question mark."""
    # Else the next files that are opened would get the numbers of the streams, and programs would write into them.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - takes no keyword
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - open to the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def writing(stream: IO[str]) -> Iterator[None]:
    """Tell what the system refuses when something is written to a standard stream.

    Raises:
        ToolError: It cannot be written, e.g. since it is a file on a full disk.
        Exit: Nobody reads it any more; the code is a shell's for SIGPIPE.
    """
    try:
        yield
        stream.flush()
    except OSError as error:
        lead_nowhere(stream)
        if isinstance(error, BrokenPipeError):
            # click would take a BrokenPipeError for itself and exit with 1.
            raise click.exceptions.Exit(NOBODY_READS) from error
        raise ToolError(
            f"standard output cannot be written: {error.strerror}", hint="make room where it goes to"
        ) from error


def lead_nowhere(stream: IO[str]) -> None:
    """Let a stream swallow what is left in its buffer, so that the interpreter does not complain at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

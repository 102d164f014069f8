"""What all commands share: common options, the host, and where words and documents go."""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgebuild.cli.plain import PlainProgress
from edgebuild.cli.streams import writing
from edgebuild.host import Host, make_host
from edgebuild.progress import Progress, SilentProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a command works with.

    Attributes:
        host: The machine and moment.
        progress: Where long work tells of itself: standard error.
        as_json: Whether one document goes to standard output, and nothing else.
        quiet: Whether nothing but errors is told.
    """

    host: Host
    progress: Progress
    as_json: bool
    quiet: bool

    def say(self, text: str) -> None:
        """Tell a person something: on standard output, or on standard error beside a JSON document."""
        if not self.quiet:
            with writing(sys.stderr if self.as_json else sys.stdout):
                click.echo(text, err=self.as_json)

    def give(self, document: object) -> None:
        """Write the JSON document, if one is wanted."""
        if self.as_json:
            with writing(sys.stdout):
                click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--quiet`, `--json` and `--cache`, and hand the command a `Session` as its first argument."""

    @click.option(
        "--cache",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Folder of the store. [default: ~/.cache/edgebuild]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Write one JSON document to standard output.")
    @click.option("--quiet", is_flag=True, help="Tell nothing but errors.")
    @functools.wraps(function)
    def wrapped(cache: Path | None, as_json: bool, quiet: bool, **arguments: Any) -> Any:
        return function(make_session(cache=cache, as_json=as_json, quiet=quiet), **arguments)

    return wrapped


def make_session(*, cache: Path | None, as_json: bool, quiet: bool) -> Session:
    """Look at the surroundings, once."""
    host = make_host(
        environment=os.environ,
        working_directory=Path.cwd(),
        cpu_count=len(os.sched_getaffinity(0)),
        now_s=int(time.time()),
        cache=cache,
    )
    return Session(
        host=host, progress=_progress(host, quiet=quiet, as_json=as_json), as_json=as_json, quiet=quiet
    )


def _progress(host: Host, *, quiet: bool, as_json: bool) -> Progress:
    if quiet:
        return SilentProgress()
    if sys.stderr.isatty() and not as_json and host.environment.get("TERM", "dumb") != "dumb":
        from edgebuild.cli.terminal import RichProgress  # noqa: PLC0415 - rich is slow to import

        return RichProgress()
    return PlainProgress()

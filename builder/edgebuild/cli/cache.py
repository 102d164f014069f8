"""`edgebuild cache`: info, prune, verify."""

import re

import click

from edgebuild.artifacts.store import Store
from edgebuild.cli.options import Session, common_options
from edgebuild.cli.tables import render_table
from edgebuild.errors import StoreError, UsageError
from edgebuild.fit import format_bytes

_DURATION_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.group(name="cache")
def command() -> None:
    """Look after the store: what was downloaded, compiled, quantised and compressed."""


@command.command("info")
@common_options
def info(session: Session) -> None:
    """Show what the store holds."""
    store = _store(session)
    kinds = store.info()
    rows = [(kind.kind, str(kind.entries), format_bytes(kind.size_bytes)) for kind in kinds]
    total = sum(kind.size_bytes for kind in kinds)
    session.say(
        f"{store.root}\n"
        + render_table(
            ("kind", "entries", "size"), [*rows, ("all", "", format_bytes(total))], right=frozenset({1, 2})
        )
    )
    session.give(
        {
            "store": str(store.root),
            "size_bytes": total,
            "kinds": [{"kind": k.kind, "entries": k.entries, "size_bytes": k.size_bytes} for k in kinds],
        }
    )


@command.command("prune")
@click.option(
    "--unused-for", metavar="TIME", help="Remove what was not used for this long, e.g. 12h, 30d or 4w."
)
@click.option("--all", "everything", is_flag=True, help="Remove everything.")
@common_options
def prune(session: Session, unused_for: str | None, everything: bool) -> None:
    """Remove what is not needed; a build under way keeps what it uses."""
    if everything == (unused_for is not None):
        raise UsageError("say what to remove", hint="give --unused-for 30d, or --all")
    since = None if unused_for is None else session.host.now_s - _seconds(unused_for)
    removed = _store(session).prune(unused_since_s=since)
    session.say(f"removed {removed.entries} entries, {format_bytes(removed.size_bytes)}")
    session.give({"entries": removed.entries, "size_bytes": removed.size_bytes})


@command.command("verify")
@common_options
def verify(session: Session) -> None:
    """Read every entry and compare it with its seal; the exit code is 5 when one is damaged."""
    faults = _store(session).verify()
    for fault in faults:
        session.say(fault)
    session.give({"faults": list(faults)})
    if faults:
        raise StoreError(
            f"{len(faults)} entries of the store are damaged", hint="the next build makes them anew"
        )
    session.say("every entry is whole")


def _store(session: Session) -> Store:
    return Store(session.host.cache_directory, progress=session.progress)


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a length of time", hint="write e.g. 12h, 30d or 4w")
    return int(match[1]) * _DURATION_S[match[2]]

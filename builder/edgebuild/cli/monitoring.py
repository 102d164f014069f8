"""`edgebuild monitoring`: what Prometheus and Grafana need to watch devices."""

from pathlib import Path

import click

from edgebuild.cli.options import Session, common_options
from edgebuild.data import data_path
from edgebuild.errors import ToolError, UsageError

_FOLDER = "docs/monitoring"


@click.command(name="monitoring")
@click.argument("folder")
@common_options
def command(session: Session, folder: str) -> None:
    """Write alert rules and scrape settings for Prometheus, and a dashboard for Grafana, into FOLDER.

    A file that is there and holds something else is left alone.
    """
    target = session.host.path(folder)
    sources = sorted(data_path(_FOLDER).iterdir())
    try:
        target.mkdir(parents=True, exist_ok=True)
        changed = [path for path in sources if _differs(path, target / path.name)]
        if changed:
            raise UsageError(
                f"{target / changed[0].name} is there and holds something else",
                hint="choose another folder, or move it away",
            )
        for path in sources:
            (target / path.name).write_bytes(path.read_bytes())
    except OSError as error:
        raise ToolError(
            f"{target} cannot be written: {error.strerror}", hint="make room or choose another place"
        ) from error
    for path in sources:
        session.say(str(target / path.name))
    session.give({"files": [str(target / path.name) for path in sources]})


def _differs(source: Path, target: Path) -> bool:
    return target.exists() and target.read_bytes() != source.read_bytes()

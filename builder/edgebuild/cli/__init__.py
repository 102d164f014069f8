"""The command line: click and rich, one module a command. Only here are the environment, the clock and exits met."""

import gc
import signal
import sys

import click

from edgebuild import __version__
from edgebuild.cli.lazy import LazyGroup
from edgebuild.errors import EdgebuildError, UsageError

# A group without a command shows its help (click 8.2 on; before, it is no exception).
_HELP_WANTED = getattr(click.exceptions, "NoArgsIsHelpError", ())

# Command, module and help line: the line stands here so that `edgebuild --help` imports no command.
_COMMANDS = {
    "init": ("edgebuild.cli.init", "Write a project file: what `image` builds in this folder."),
    "image": ("edgebuild.cli.image", "Build a signed image for one or more devices."),
    "profiles": ("edgebuild.cli.profiles", "List, show and check device profiles."),
    "fit": ("edgebuild.cli.fit", "Show whether a model fits a device, with the arithmetic."),
    "model": (
        "edgebuild.cli.model",
        "Prepare models: measure, prune and distill them, set up what converting needs.",
    ),
    "test": (
        "edgebuild.cli.test",
        "Start the images of a layout on their processor models and ask a question.",
    ),
    "bench": (
        "edgebuild.cli.bench",
        "Measure an image on this machine, or take a device's result; compare it.",
    ),
    "check": ("edgebuild.cli.check", "Read a layout back and check every byte and rule."),
    "keys": ("edgebuild.cli.keys", "Make key pairs for signing."),
    "sign": ("edgebuild.cli.sign", "Sign an image in a registry or layout."),
    "verify": ("edgebuild.cli.verify", "Verify an image in a registry or layout."),
    "push": ("edgebuild.cli.push", "Copy a layout to a registry."),
    "archive": ("edgebuild.cli.archive", "Write an image of a layout as a file for `docker load`."),
    "monitoring": ("edgebuild.cli.monitoring", "Write what Prometheus and Grafana need to watch devices."),
    "cache": ("edgebuild.cli.cache", "Look after the store."),
}


@click.group(
    cls=LazyGroup,
    modules=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="edgebuild")
def cli() -> None:
    """Turn a device profile and a language model into a signed container image for that device."""


def main() -> None:
    """Run the command line and exit with the code of what happened."""
    # What is imported and read from the store lives to the end: looking through it for garbage at each 700 new objects
    # (Python's default) would take a tenth of a short command.
    gc.set_threshold(100_000)
    from edgebuild.cli.streams import NOBODY_READS, lead_nowhere, mend_streams  # noqa: PLC0415 - after the import of click

    mend_streams()
    try:
        code = _run(sys.argv[1:])
    except BrokenPipeError:
        code = NOBODY_READS
    if code == NOBODY_READS:
        lead_nowhere(sys.stdout)
        lead_nowhere(sys.stderr)
    sys.exit(code)


def _usage_error(error: click.ClickException) -> UsageError:
    """Turn what click says of the arguments into our one line and a hint."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = "edgebuild" if context is None else context.command_path
    return UsageError(" ".join(error.format_message().split()), hint=f"see `{path} --help`")


def _run(arguments: list[str]) -> int:
    from edgebuild.cli.ending import InterruptedBuildError, ended_by_signal, tell_error  # noqa: PLC0415 - after the import of click

    code = 0
    try:
        with ended_by_signal():
            # What Exit said comes back as a value; commands themselves return nothing.
            code = cli.main(arguments, prog_name="edgebuild", standalone_mode=False) or 0
    except click.ClickException as error:
        if isinstance(error, _HELP_WANTED):
            error.show()
            code = error.exit_code
        else:
            code = tell_error(_usage_error(error), as_json="--json" in arguments)
    except EdgebuildError as error:
        code = tell_error(error, as_json="--json" in arguments)
    except (KeyboardInterrupt, click.Abort):
        # Another Ctrl-C, meant for what has just ended, must not take its exit code away.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = tell_error(InterruptedBuildError(), as_json="--json" in arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # All is done and told: what comes now would only have Python tell where it was.
        signal.signal(number, signal.SIG_IGN)
    return code

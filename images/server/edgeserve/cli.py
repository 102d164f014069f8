"""The command line: `serve`, `check`, `bench`, `health`, `config`, `keys`, `audit`. Imports wait until they are needed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from edgeserve import exits

if TYPE_CHECKING:
    import argparse

    from edgeserve.settings import Runtime


def main(arguments: list[str]) -> int:
    """Run a command.

    Returns:
        Its exit code, see `edgeserve.exits`.
    """
    # As process 1 of a container a signal without a handler is ignored; this one holds until the server has its own.
    signal.signal(signal.SIGTERM, _leave)
    if arguments[:1] == ["audit"]:
        # With a parser of its own, since it brings cryptography.
        from edgeserve.audit.commands import main as audit  # noqa: PLC0415

        return audit(arguments[1:], os.environ)
    options = _parser().parse_args(arguments)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "serve": _serve,
        "check": _check,
        "bench": _bench,
        "health": _health,
        "config": _config,
        "keys": _new_key,
    }
    return commands[options.command](options)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(exits.OK)


def _parser() -> argparse.ArgumentParser:
    import argparse  # noqa: PLC0415

    from edgeserve.config import RUNTIME_PATH  # noqa: PLC0415
    from edgeserve.settings import settings  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="edgeserve", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument(
        "--runtime", dest="EDGE_RUNTIME", metavar="FILE", help=f"configuration (default {RUNTIME_PATH})"
    )
    for setting in settings():
        if setting.flag:
            shared.add_argument(
                setting.flag, dest=setting.variable, metavar="VALUE", help=setting.field.metadata["doc"]
            )
    commands.add_parser("serve", parents=[shared], allow_abbrev=False, help="serve the model")
    commands.add_parser(
        "check", parents=[shared], allow_abbrev=False, help="say whether this machine can serve the model"
    )
    _add_bench(commands, shared)
    commands.add_parser(
        "health", allow_abbrev=False, help="exit with 0 if the server on this machine is ready"
    )
    config = commands.add_parser(
        "config", parents=[shared], allow_abbrev=False, help="check the configuration and print it"
    )
    config.add_argument("--table", action="store_true", help="print the table of all keys instead")
    commands.add_parser(
        "audit", add_help=False, help="print the key of this device, or verify its audit log (audit --help)"
    )
    keys = commands.add_parser("keys", allow_abbrev=False, help="make an API key")
    new = keys.add_subparsers(dest="action", required=True).add_parser(
        "new",
        allow_abbrev=False,
        help="print a new key on standard error and its line for the key file on standard output",
    )
    new.add_argument("--id", required=True, help="name of the client in limits, metrics and logs")
    return parser


def _health(_options: argparse.Namespace) -> int:
    from edgeserve import health  # noqa: PLC0415

    return health.main()


def _new_key(options: argparse.Namespace) -> int:
    """Print what is to be kept apart on two streams: `edgeserve keys new --id phone >> keys 2> phone.key`."""
    from edgeserve.access.keys import make_key  # noqa: PLC0415
    from edgeserve.access.watched import AccessError  # noqa: PLC0415

    try:
        key, line = make_key(options.id)
    except AccessError as error:
        sys.stderr.write(f"edgeserve: {error}\n")
        return exits.USAGE
    sys.stdout.write(line + "\n")
    sys.stderr.write(key + "\n")
    return exits.OK


def _load(options: argparse.Namespace) -> Runtime | None:
    from edgeserve.config import ConfigError, load_config  # noqa: PLC0415

    flags = {
        name: value for name, value in vars(options).items() if name.startswith("EDGE_") and value is not None
    }
    try:
        return load_config(os.environ, flags)
    except ConfigError as error:
        count = len(error.faults)
        sys.stderr.write(f"edgeserve: {count} fault{'s' * (count > 1)} in the configuration: {error}\n")
        return None


def _serve(options: argparse.Namespace) -> int:
    runtime = _load(options)
    if runtime is None:
        return exits.CONFIG
    from edgeserve.serve import serve  # noqa: PLC0415

    return serve(runtime)


def _check(options: argparse.Namespace) -> int:
    runtime = _load(options)
    if runtime is None:
        return exits.CONFIG
    from edgeserve.log import Log  # noqa: PLC0415
    from edgeserve.preflight.run import check  # noqa: PLC0415

    return check(runtime, Log())


def _add_bench(commands: Any, shared: argparse.ArgumentParser) -> None:
    bench = commands.add_parser(
        "bench", parents=[shared], allow_abbrev=False, help="measure how fast this machine serves the model"
    )
    for flag, default, text in (
        ("--prompt", 256, "tokens of each prompt"),
        ("--output", 128, "tokens of each answer, at least 2"),
        ("--concurrency", 1, "requests at the same time"),
        ("--repetitions", 5, "how often, after one round that is not counted"),
    ):
        bench.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} (default {default})")
    bench.add_argument("--json", action="store_true", help="print one JSON document instead of a table")


def _bench(options: argparse.Namespace) -> int:
    from edgeserve.bench.figures import Load  # noqa: PLC0415

    runtime = _load(options)
    if runtime is None:
        return exits.CONFIG
    load = Load(
        prompt_tokens=options.prompt,
        output_tokens=options.output,
        concurrency=options.concurrency,
        repetitions=options.repetitions,
    )
    from edgeserve.bench.run import bench  # noqa: PLC0415

    return bench(runtime, load, as_json=options.json)


def _config(options: argparse.Namespace) -> int:
    from edgeserve.config import render_table  # noqa: PLC0415

    if options.table:
        sys.stdout.write(render_table())
        return exits.OK
    runtime = _load(options)
    if runtime is None:
        return exits.CONFIG
    import dataclasses  # noqa: PLC0415
    import json  # noqa: PLC0415

    sys.stdout.write(json.dumps(dataclasses.asdict(runtime), indent=2) + "\n")
    return exits.OK

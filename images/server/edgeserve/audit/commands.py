"""`edgeserve audit`: shows the key of the device, and verifies the log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from edgeserve import exits
from edgeserve.audit.device_key import KEY_FILE, DeviceKeyError, load_key
from edgeserve.config import ConfigError, load_config
from edgeverify.audit.__main__ import add_options, run
from edgeverify.keys import PEM_BYTES


def main(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Run the command.

    Returns:
        Its exit code: `exits.AUDIT` where the log does not verify or there is no key to verify it by.
    """
    parser = argparse.ArgumentParser(prog="edgeserve audit", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True)
    key = actions.add_parser("key", allow_abbrev=False, help="print the public key of this device")
    key.add_argument("--state-dir", type=Path, metavar="FOLDER", help="instead of server.state_dir")
    verify = actions.add_parser(
        "verify", allow_abbrev=False, help="find what was changed, removed, added or put elsewhere"
    )
    add_options(verify, key_required=False)
    options = parser.parse_args(arguments)
    try:
        if options.action == "key":
            sys.stdout.write(_device_key(options.state_dir, environment))
            return exits.OK
        pem = _read(options.key) if options.key else _device_key(None, environment).encode()
    except (ConfigError, DeviceKeyError) as error:
        sys.stderr.write(f"edgeserve: {error}\n")
        return exits.CONFIG if isinstance(error, ConfigError) else exits.AUDIT
    return exits.OK if run(options, pem) else exits.AUDIT


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(PEM_BYTES + 1)
    except OSError as error:
        raise DeviceKeyError(f"{path} cannot be read: {error.strerror or error}") from error


def _device_key(folder: Path | None, environment: Mapping[str, str]) -> str:
    """Return the public key of this device, in PEM form."""
    if folder is None:
        state_dir = load_config(environment, {}).server.state_dir
        if not state_dir:
            raise DeviceKeyError("server.state_dir is not set, so this device has no key")
        folder = Path(state_dir)
    try:
        return load_key(folder).public_pem
    except FileNotFoundError:
        raise DeviceKeyError(
            f"there is no {folder / KEY_FILE}; the server makes it when it first starts with an audit log"
        ) from None

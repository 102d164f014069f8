"""Passwords of keys: from a file, the environment or a prompt, in this order; and the keys they open."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgebuild.cli.options import Session
from edgebuild.errors import UsageError

if TYPE_CHECKING:
    from edgebuild.signing.keys import SigningKey

_VARIABLES = ("EDGEBUILD_PASSWORD", "COSIGN_PASSWORD")


def password_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--password-file`."""
    return click.option(
        "--password-file",
        metavar="FILE",
        help="File whose first line is the key's password. [default: $EDGEBUILD_PASSWORD, $COSIGN_PASSWORD, or ask]",
    )(function)


def read_password(password_file: str | None, *, session: Session, is_new: bool) -> bytes:
    """Find the password of a key.

    Args:
        password_file: The option's value.
        session: The command's.
        is_new: Whether the key is being made, so that the prompt asks twice.

    Raises:
        UsageError: The file cannot be read, or there is nobody to ask.
    """
    if password_file is not None:
        path = session.host.path(password_file)
        try:
            with path.open("rb") as file:
                return file.readline(4096).rstrip(b"\r\n")
        except OSError as error:
            raise UsageError(
                f"{path}: the password cannot be read: {error.strerror}", hint="check --password-file"
            ) from error
    for variable in _VARIABLES:
        if variable in session.host.environment:
            return session.host.environment[variable].encode()
    if not sys.stdin.isatty():
        raise UsageError(
            "the key needs a password and there is no terminal to ask on",
            hint=f"give --password-file FILE or set {_VARIABLES[0]}",
        )
    return str(
        click.prompt(
            "Password of the key",
            hide_input=True,
            confirmation_prompt=is_new,
            default="",
            show_default=False,
            err=True,
        )
    ).encode()


def load_key(key: str | None, password_file: str | None, *, session: Session) -> SigningKey | None:
    """Open the private key of `--sign`, or return None without one.

    Raises:
        UsageError: A password is given without a key.
        SignatureError: The key cannot be read or opened.
    """
    if key is None:
        if password_file is not None:
            raise UsageError("--password-file without a key to open", hint="add --sign KEY")
        return None
    path = session.host.path(key)
    if not path.exists():
        raise UsageError(f"{path}: no such key", hint="make a pair with `edgebuild keys generate`")
    from edgebuild.signing.keys import load_signing_key  # noqa: PLC0415 - unsigned builds do without cryptography

    return load_signing_key(Path(path), read_password(password_file, session=session, is_new=False))

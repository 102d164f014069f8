"""Command line: `python -m edgeverify.audit FILE… --key PUB` verifies an audit log of edgeserve, on any machine."""

import argparse
import sys
from pathlib import Path

from edgeverify.audit.chain import Audit, parse_mark, verify_audit
from edgeverify.errors import VerificationError
from edgeverify.keys import PEM_BYTES, load_public_key

EXIT_REFUSED = 8  # as edgebuild's for signatures
_MOST_REASONS = 50


def add_options(parser: argparse.ArgumentParser, *, key_required: bool) -> None:
    """Give a parser what the command takes."""
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="files of the log, in any order, or their folder"
    )
    parser.add_argument(
        "--key", type=Path, required=key_required, metavar="PUB", help="public key of the device, in PEM form"
    )
    parser.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="LINE:HASH",
        help="a line known elsewhere, with at least 13 digits of its SHA-256; may be given again",
    )


def run(options: argparse.Namespace, pem: bytes) -> bool:
    """Verify and tell: what was found on standard output, or every fault on standard error.

    Returns:
        Whether the log verifies.
    """
    try:
        marks = [parse_mark(text) for text in options.head]
        audit = verify_audit(options.files, load_public_key(pem), marks=marks)
    except VerificationError as error:
        sys.stderr.write(f"refused: {error.message}\n")
        sys.stderr.writelines(f"  {reason}\n" for reason in error.reasons[:_MOST_REASONS])
        if len(error.reasons) > _MOST_REASONS:
            sys.stderr.write(f"  and {len(error.reasons) - _MOST_REASONS} more\n")
        return False
    sys.stdout.write(_render(audit))
    return True


def _render(audit: Audit) -> str:
    lines = [
        f"verified lines {audit.first_line} to {audit.last_line} in {len(audit.files)} files",
        f"signed up to {audit.head.line}:{audit.head.digest}",
        *(f"note: {note}" for note in audit.notes),
    ]
    if audit.unsigned_lines:
        lines.append(f"note: the last {audit.unsigned_lines} lines are chained, but not signed yet")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run the command; the exit code is 0 when the log verifies, 8 when it does not, 2 for bad usage."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeverify.audit",
        description="Verify an audit log of edgeserve: every line's place in the chain and every signature.",
    )
    add_options(parser, key_required=True)
    options = parser.parse_args(arguments)
    try:
        with options.key.open("rb") as file:
            pem = file.read(PEM_BYTES + 1)
    except OSError as error:
        sys.stderr.write(f"refused: {options.key} cannot be read: {error.strerror}\n")
        return EXIT_REFUSED
    return 0 if run(options, pem) else EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

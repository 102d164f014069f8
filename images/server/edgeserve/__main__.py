"""`python -m edgeserve`: hands the process over to a command."""

import sys

if __name__ == "__main__":
    if sys.argv[1:] == ["health"]:
        # Every 30 s on a small device: without the parser and what it needs.
        from edgeserve.health import main as health

        sys.exit(health())
    from edgeserve.cli import main

    sys.exit(main(sys.argv[1:]))

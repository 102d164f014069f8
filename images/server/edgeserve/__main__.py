"""`python -m edgeserve`: hands the process over to the command line."""

import sys

from edgeserve.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Exit codes of every edgeserve command, so that a supervisor can tell causes apart."""

OK = 0
FAILED = 1
USAGE = 2
CONFIG = 3
ENGINE = 4
LISTEN = 5
ACCESS = 6

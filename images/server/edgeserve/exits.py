"""Exit codes of every edgeserve command, so that a supervisor can tell causes apart."""

OK = 0
FAILED = 1
USAGE = 2
CONFIG = 3
ENGINE = 4
LISTEN = 5
ACCESS = 6
AUDIT = 7
# Preflight, one for each check (edgeserve.preflight).
CPU = 10
PAGE_SIZE = 11
MEMORY = 12
PATHS = 13
MODEL_FILE = 14
MODEL_CHANGED = 15

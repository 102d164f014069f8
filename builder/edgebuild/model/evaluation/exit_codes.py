"""How the process that measures ends; it and what starts it agree on that."""

from typing import Final

REFUSED: Final = 1
FAILED: Final = 2
DISK_FULL: Final = 3

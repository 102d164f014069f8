"""Forward passes that fail: one is the misfortune of its requests, several in a row are the engine's end."""

from __future__ import annotations

from typing import Final

from edgeserve.engine.protocol import EngineError

_MOST_IN_A_ROW: Final = 3


class Failures:
    """Counts them; whoever runs the passes sets `in_a_row` to 0 after one that went well."""

    __slots__ = ("in_a_row",)

    def __init__(self) -> None:
        self.in_a_row = 0

    def add(self, code: int) -> None:
        """Count one more, with llama.cpp's code for it.

        Raises:
            EngineError: It was one too many.
        """
        self.in_a_row += 1
        if self.in_a_row >= _MOST_IN_A_ROW:
            raise EngineError(f"{self.in_a_row} forward passes failed in a row, the last with code {code}")

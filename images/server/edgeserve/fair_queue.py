"""A queue that serves clients in turn, however many requests each has waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """One line of items per client, served round robin: nobody twice in a row while somebody else waits."""

    __slots__ = ("_last", "_lines")

    def __init__(self) -> None:
        # In the order of their turns.
        self._lines: dict[str, deque[_T]] = {}
        self._last = ""

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[_T]:
        """Go through all items, client by client."""
        for line in self._lines.values():
            yield from line

    def push(self, item: _T, *, client: str) -> None:
        """Append an item to its client's line."""
        self._lines.setdefault(client, deque()).append(item)

    def pop(self) -> _T:
        """Take the next item of the client whose turn it is.

        Raises:
            IndexError: The queue is empty.
        """
        if not self._lines:
            raise IndexError("the queue is empty")
        if self._last == next(iter(self._lines)):
            # It was alone when it was served; all who have come since go first.
            self._lines[self._last] = self._lines.pop(self._last)
        client = next(iter(self._lines))
        line = self._lines.pop(client)
        item = line.popleft()
        if line:
            self._lines[client] = line
        self._last = client
        return item

    def remove(self, is_unwanted: Callable[[_T], bool]) -> None:
        """Take out items without serving them."""
        left = (
            (client, deque(item for item in line if not is_unwanted(item)))
            for client, line in self._lines.items()
        )
        self._lines = {client: line for client, line in left if line}

    def clear(self) -> None:
        """Take everything out."""
        self._lines.clear()

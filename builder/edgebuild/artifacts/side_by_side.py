"""Several files at once: a few side by side, large ones in pieces over lanes that all of them share."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from edgebuild.beside import side_by_side
from edgebuild.network import Stop
from edgebuild.pieces import Lanes

_AT_ONCE = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def fetch_side_by_side(
    items: Iterable[Item], fetch: Callable[[Item, Lanes], Result], *, stop: Stop
) -> tuple[Result, ...]:
    """Fetch a few at a time and return what came of each, in their order; the first fault ends the others.

    Args:
        items: What is fetched.
        fetch: Fetches one, in a thread of its own, and large files over the lanes; ends soon after `stop` is set.
        stop: Set when one fails, or this thread is interrupted.

    Raises:
        EdgebuildError: What the first one to fail raised.
    """
    with Lanes() as lanes:
        return side_by_side(items, lambda item: fetch(item, lanes), at_once=_AT_ONCE, stop=stop.set)

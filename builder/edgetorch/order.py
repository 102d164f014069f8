"""In which order rows are trained on: a pure function of seed and step, so that a run goes on where it was ended."""

from collections.abc import Iterator, Sequence
from random import Random

# Rows are sorted by length among so many batches' worth, so that little of a batch is padding and chance stays.
POOL_BATCHES = 64


def cut_batches(lengths: Sequence[int], batch_tokens: int) -> list[tuple[int, int]]:
    """Cut rows of rising length into runs (start, stop) of at most `batch_tokens`, padding included, one row at least."""
    cuts, start = [], 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or lengths[stop] * (stop + 1 - start) > batch_tokens:
            cuts.append((start, stop))
            start = stop
    return cuts


def epoch_batches(lengths: Sequence[int], *, batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Cut all rows into the batches of one pass.

    Args:
        lengths: Tokens of each row.
        batch_tokens: Tokens of a batch, padding included.
        seed: Any integer.
        epoch: Number of the pass, from 0.

    Returns:
        Indexes of the rows, batch by batch.
    """
    rng = Random(f"{seed}/{epoch}")  # noqa: S311 - an order, no secret
    shuffled = _shuffled(rng, range(len(lengths)))
    mean = max(1, sum(lengths) // max(1, len(lengths)))
    pool_rows = max(1, POOL_BATCHES * batch_tokens // mean)
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), pool_rows):
        pool = sorted(shuffled[start : start + pool_rows], key=lambda index: lengths[index])
        cuts = cut_batches([lengths[index] for index in pool], batch_tokens)
        batches += [pool[first:last] for first, last in cuts]
    return [batches[index] for index in _shuffled(rng, range(len(batches)))]


def batches_from(
    lengths: Sequence[int], *, batch_tokens: int, seed: int, first_step: int
) -> Iterator[list[int]]:
    """Yield batches without end, from the one of step `first_step` (counted from 0) on."""
    skip, epoch = first_step, 0
    while True:
        batches = epoch_batches(lengths, batch_tokens=batch_tokens, seed=seed, epoch=epoch)
        yield from batches[skip:]
        skip = max(0, skip - len(batches))
        epoch += 1


def _shuffled(rng: Random, items: Sequence[int]) -> list[int]:
    # Random.random() is the only method whose sequence Python promises to keep.
    return sorted(items, key=lambda item: rng.random())  # noqa: ARG005 - one draw an item

"""The learning rate over a training."""

import math

_WARMUP_SHARE = 20  # one in so many steps


def rate_at(step: int, *, steps: int, highest: float) -> float:
    """Return the rate of a step, counted from 0: a linear rise over the first twentieth, then a cosine down to nearly 0."""
    warmup = max(1, steps // _WARMUP_SHARE)
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2

"""The figures of a scored text, as llama.cpp's perplexity tool defines them.

Source: llama.cpp tools/perplexity/perplexity.cpp, kl_divergence(): mean_and_uncertainty, covariance, percentile.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one distribution says of the token that came.

    Attributes:
        top: The likeliest token.
        logprob: Natural log probability of the token that came.
    """

    top: int
    logprob: float


@dataclass(slots=True, kw_only=True)
class Scored:
    """What a model made of a text, position by position.

    Attributes:
        top: The likeliest token.
        logprobs: Natural log probability of the token that came.
        divergences: Kullback-Leibler divergence from the original's distribution, in nats; empty for the original.
    """

    top: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)

    def add_all(self, seen: Iterable[Seen]) -> None:
        """Append some positions."""
        for one in seen:
            self.top.append(one.top)
            self.logprobs.append(one.logprob)


def perplexity(scored: Scored) -> tuple[float, float]:
    """Return exp of the mean negative log probability, and its standard error."""
    mean, error = _mean([-value for value in scored.logprobs])
    return math.exp(mean), math.exp(mean) * error


def compared(base: Scored, scored: Scored) -> dict[str, float]:
    """Compare with the original.

    Returns:
        Ratio of the perplexities, mean and standard error of the divergence in nats, its median, 99 % percentile and
        maximum, the root mean square of the change in probability of the token that came, the share of
        positions where both find the same token likeliest, and the standard errors of ratio and share.
    """
    count = len(scored.logprobs)
    log_ratios = [one - other for one, other in zip(base.logprobs, scored.logprobs, strict=True)]
    mean, error = _mean(log_ratios)
    divergence, divergence_error = _mean(scored.divergences)
    ordered = sorted(scored.divergences)
    changes = [
        (math.exp(other) - math.exp(one)) ** 2
        for one, other in zip(base.logprobs, scored.logprobs, strict=True)
    ]
    same = sum(one == other for one, other in zip(base.top, scored.top, strict=True)) / count
    return {
        "perplexity_ratio": math.exp(mean),
        "perplexity_ratio_error": math.exp(mean) * error,
        "kl_divergence": divergence,
        "kl_divergence_error": divergence_error,
        "kl_divergence_median": percentile(ordered, 0.5),
        "kl_divergence_99": percentile(ordered, 0.99),
        "kl_divergence_max": ordered[-1],
        "probability_change_rms": math.sqrt(sum(changes) / count),
        "same_top": same,
        "same_top_error": math.sqrt(same * (1 - same) / max(1, count - 1)),
    }


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Return a percentile of sorted values, between two of them in proportion."""
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error; the variance of paired differences is what covariances add up to."""
    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / count
    return mean, math.sqrt(variance / (count - 1)) if count > 10 else 0.0

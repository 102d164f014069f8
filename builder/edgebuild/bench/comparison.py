"""Two results side by side: what changed, whether it is slower, and what else is not the same. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from edgebuild.bench.result import BenchResult, Figures
from edgebuild.errors import UsageError

# Speeds are what a threshold holds for: name, unit, factor, whether more is better.
_SPEEDS = (
    ("first_token_s", "ms", 1000.0, False),
    ("prompt_tokens_per_s", "tokens/s", 1.0, True),
    ("generation_tokens_per_s", "tokens/s", 1.0, True),
    ("total_tokens_per_s", "tokens/s", 1.0, True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure before and after.

    Attributes:
        figure: Its name in the document.
        unit: Unit of both values.
        before: Median before; None where it was not told.
        after: Median after, likewise.
        percent: Change in percent of `before`, None where that is not known.
        slower_percent: By how much it is slower, 0 if it is not, or is no speed.
    """

    figure: str
    unit: str
    before: float | None
    after: float | None
    percent: float | None
    slower_percent: float


def compare(before: BenchResult, after: BenchResult) -> tuple[Change, ...]:
    """Compare two results of the same load.

    Raises:
        UsageError: They are not of the same load, or one was traced and the other not.
    """
    for name, old, new in (
        ("prompt_tokens", before.load.prompt_tokens, after.load.prompt_tokens),
        ("output_tokens", before.load.output_tokens, after.load.output_tokens),
        ("concurrency", before.load.concurrency, after.load.concurrency),
        ("is_traced", before.is_traced, after.is_traced),
    ):
        if old != new:
            raise UsageError(
                f"the results cannot be compared: {name} was {old}, is {new}",
                hint="measure both with the same --prompt, --output and --concurrency",
            )
    return tuple(_changes(before.figures, after.figures))


def _changes(before: Figures, after: Figures) -> Iterator[Change]:
    for figure, unit, factor, is_more_better in _SPEEDS:
        old, new = (getattr(figures, figure).median * factor for figures in (before, after))
        percent = (new - old) / old * 100
        slower = -percent if is_more_better else percent
        yield Change(
            figure=figure,
            unit=unit,
            before=old,
            after=new,
            percent=percent,
            slower_percent=max(0.0, slower),
        )
    yield _other("peak_memory_bytes", "MB", _mb(before.peak_memory_bytes), _mb(after.peak_memory_bytes))
    energies = tuple(
        None if figures.energy is None else figures.energy.joules_per_token for figures in (before, after)
    )
    yield _other("joules_per_token", "J", *energies)
    yield _other("celsius_highest", "°C", before.celsius_highest, after.celsius_highest)


def _mb(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


def _other(figure: str, unit: str, before: float | None, after: float | None) -> Change:
    percent = None if before is None or after is None or before <= 0 else (after - before) / before * 100
    return Change(figure=figure, unit=unit, before=before, after=after, percent=percent, slower_percent=0.0)


def differences(before: BenchResult, after: BenchResult) -> tuple[str, ...]:
    """Name what else is not the same, one line each: it may be why the figures differ."""
    sections = ("profile", "edgeserve", "model", "engine", "machine")
    lines = []
    for section in sections:
        old, new = (result.model_dump()[section] for result in (before, after))
        if not isinstance(old, dict):
            old, new = {"": old}, {"": new}
        lines += [
            f"{section}{'.' if key else ''}{key}: was {old[key]}, is {new[key]}"
            for key in old
            if old[key] != new[key]
        ]
    return tuple(lines)


def slowest(changes: tuple[Change, ...]) -> Change:
    """Return the change that is slower than any other; at least the speeds are among them."""
    return max(changes, key=lambda change: change.slower_percent)

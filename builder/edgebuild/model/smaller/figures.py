"""What was measured of a model, and how it is shown beside another's."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One model, measured; `edgetorch` tells them by the same names.

    Attributes:
        parameters: Number of weights, shared ones counted once.
        layers: Number of layers.
        weights_bytes: Size of the weights' files.
        perplexity: Of the held-out part of the text; None where it is no number.
        exact: Share of the tasks answered to the letter; None without tasks.
    """

    parameters: int
    layers: int
    weights_bytes: int
    perplexity: float | None
    exact: float | None


def figure_rows(
    models: Sequence[Figures], *, held_out_tokens: int, tasks: int
) -> tuple[tuple[str, ...], ...]:
    """Lay models side by side: a row a figure, its name first."""
    rows = [
        ("parameters", *(f"{model.parameters:,}" for model in models)),
        ("layers", *(str(model.layers) for model in models)),
        ("weights", *(f"{model.weights_bytes / 1e6:,.1f} MB" for model in models)),
        (
            f"perplexity, {held_out_tokens:,} tokens held out",
            *(render_perplexity(model) for model in models),
        ),
    ]
    if tasks:
        rows.append(
            (f"exact answers to {tasks:,} tasks", *(f"{(model.exact or 0) * 100:.1f} %" for model in models))
        )
    return tuple(rows)


def render_perplexity(model: Figures) -> str:
    """Write a perplexity with as many digits as mean something."""
    if model.perplexity is None:
        return "not a number"
    return f"{model.perplexity:.4f}" if model.perplexity < 10 else f"{model.perplexity:,.1f}"

"""How much each layer matters on a text, by two measures."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgetorch.events import Events
from edgetorch.measure import IGNORED, batches_of, mean_loss
from edgetorch.texts import Row


def block_influence(model: Any, rows: Sequence[Row], *, events: Events) -> list[float]:
    """Measure how far each layer turns what it is given: 1 - cosine similarity of input and output, mean over tokens.

    One pass over the text.

    Source: Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, arXiv 2403.03853.
    """
    layers = model.base_model.layers
    sums = [0.0] * len(layers)
    is_row: Tensor = torch.zeros(())

    def note(layer: int, given: Tensor, made: Tensor) -> None:
        turned = 1 - functional.cosine_similarity(given[is_row], made[is_row], dim=-1)
        sums[layer] += float(turned.sum(dtype=torch.float64))

    hooks = [
        layer.register_forward_hook(
            lambda _layer, given, named, made, number=number: note(
                number,
                given[0] if given else named["hidden_states"],
                made[0] if isinstance(made, tuple) else made,
            ),
            with_kwargs=True,
        )
        for number, layer in enumerate(layers)
    ]
    tokens = done = 0
    try:
        for batch in batches_of(rows):
            # Of each row what stands before its last target; padding says nothing.
            is_row = (batch.targets != IGNORED).flip(1).cumsum(1).flip(1) > 0
            with torch.no_grad():
                model.base_model(input_ids=batch.tokens, use_cache=False)
            tokens += int(is_row.sum())
            done += len(batch.tokens)
            events.progress(done, len(rows), "rows")
    finally:
        for hook in hooks:
            hook.remove()
    return [total / tokens for total in sums]


def least_influential(influences: Sequence[float], count: int) -> list[int]:
    """Choose the layers that turn their input least, rising."""
    return sorted(sorted(range(len(influences)), key=lambda layer: influences[layer])[:count])


def choose_by_loss(
    model: Any, rows: Sequence[Row], count: int, *, events: Events
) -> tuple[list[int], list[float]]:
    """Choose layers one at a time: each time the one without which the loss is least.

    Returns:
        The layers that go, in the order in which they were chosen; and the loss, in nats a token, after each.
    """
    left = list(range(len(model.base_model.layers)))
    gone: list[int] = []
    losses: list[float] = []
    tries = sum(len(left) - round_ for round_ in range(count))
    done = 0
    for _ in range(count):
        found: dict[int, float] = {}
        for layer in left:
            with _Without(model, [*gone, layer]):
                found[layer] = mean_loss(model, rows)
            done += 1
            events.progress(done, tries, "layers left out")
        best = min(left, key=lambda layer: found[layer])
        gone.append(best)
        left.remove(best)
        losses.append(found[best])
    return gone, losses


class _Without:
    """Leaves layers out of a model while the context lasts."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        self._model = model
        self._whole = model.base_model.layers
        self._types = getattr(model.config, "layer_types", None)
        self._keep = [number for number in range(len(self._whole)) if number not in layers]

    def __enter__(self) -> None:
        self._set(
            [self._whole[number] for number in self._keep],
            self._types and [self._types[n] for n in self._keep],
        )

    def __exit__(self, *error: object) -> None:
        self._set(list(self._whole), self._types)

    def _set(self, layers: list[nn.Module], types: list[str] | None) -> None:
        self._model.base_model.layers = nn.ModuleList(layers)
        self._model.config.num_hidden_layers = len(layers)
        if types is not None:
            self._model.config.layer_types = types

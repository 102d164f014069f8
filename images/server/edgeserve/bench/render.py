"""A bench's document as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

_SPREADS: Final = (
    ("first token", "first_token_s", "ms", 1000.0),
    ("prompt", "prompt_tokens_per_s", "tokens/s", 1.0),
    ("generation, one request", "generation_tokens_per_s", "tokens/s", 1.0),
    ("all requests, prompts included", "total_tokens_per_s", "tokens/s", 1.0),
)


def render_json(document: dict[str, Any]) -> str:
    """Render one JSON document, figures with six significant digits."""
    return json.dumps(_rounded(document), indent=2, ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def render_table(document: dict[str, Any]) -> str:
    """Render what people read: what was measured, and a row for each figure."""
    model, engine, machine, load = (document[name] for name in ("model", "engine", "machine", "load"))
    head = (
        f"{model['name']} ({model['description']}) on {machine['processor']}, {engine['name']} {engine['cpu_variant']}, "
        f"{engine['threads']} threads\n"
        f"{load['concurrency']} at a time, {load['prompt_tokens']} + {load['output_tokens']} tokens, "
        f"{load['repetitions']} times; median (least to greatest)\n\n"
    )
    rows = list(_rows(document["figures"]))
    width = max(len(name) for name, _ in rows)
    return head + "".join(f"{name.ljust(width)}  {value}\n" for name, value in rows)


def _rows(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, key, unit, factor in _SPREADS:
        median, least, greatest = (
            f"{figures[key][part] * factor:.4g}" for part in ("median", "least", "greatest")
        )
        yield name, f"{median} {unit} ({least} to {greatest})"
    yield "load", f"{figures['load_s']:.2f} s"
    if figures["peak_memory_bytes"] is not None:
        peak, own = (figures[key] / 1e6 for key in ("peak_memory_bytes", "anonymous_memory_bytes"))
        yield "memory at its peak", f"{peak:.0f} MB, {own:.0f} MB of it not the model's file"
    energy = figures["energy"]
    if energy is None:
        yield "energy", "this kernel does not tell"
    else:
        yield (
            "energy",
            f"{energy['joules_per_token']:.3g} J/token, {energy['watts']:.3g} W ({energy['source']})",
        )
    if figures["celsius_highest"] is None:
        yield "temperature", "this kernel does not tell"
    else:
        yield "temperature", f"{figures['celsius_highest']:.0f} °C, {figures['celsius_before']:.0f} °C before"

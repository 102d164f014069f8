"""`--quantization`: any type that llama.cpp makes, or auto."""

import difflib
from collections.abc import Callable
from typing import Any

import click

from edgebuild.quantization import AUTO, QUANTIZATIONS


class QuantizationType(click.ParamType[str]):
    """A name of llama.cpp's, in any case."""

    name = "quantization"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as llama.cpp writes it, or "auto"."""
        text = str(value)
        found = {name.lower(): name for name in (*QUANTIZATIONS, AUTO)}
        if text.lower() not in found:
            close = difflib.get_close_matches(text.lower(), found, n=1)
            meant = f"did you mean {found[close[0]]}? " if close else ""
            self.fail(f"{text!r} is no type; {meant}there are auto, {', '.join(QUANTIZATIONS)}", param, ctx)
        return found[text.lower()]


def quantization_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--quantization`."""
    return click.option(
        "--quantization",
        type=QuantizationType(),
        metavar="TYPE|auto",
        help="Type of the weights, instead of the profile's; auto takes the best that fits.",
    )(function)

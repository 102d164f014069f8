"""What both generating routes have in common: model, length, sampling, stop strings, streaming."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import Final

from edgeserve.calls import Generation
from edgeserve.engine.protocol import SEEDS, Sampling
from edgeserve.errors import ApiError
from edgeserve.http.fields import Fields, Integer, Kinds, Number, is_unicode, make_neutral
from edgeserve.settings import LimitSettings

MOST_STOPS, LONGEST_STOP = 16, 256
MOST_BIASES: Final = 1024
_MOST_CHOICES: Final = 16
LONGEST_TOKEN_ID: Final = 9  # digits; llama.cpp's ids have 31 bits
BIAS: Final = Number(low=-100.0, high=100.0, default=0.0)

_FIELDS: Final[Kinds] = MappingProxyType(
    {
        "model": str,
        "stream": bool,
        "stream_options": dict,
        "n": Integer(low=1, high=_MOST_CHOICES),
        "stop": object,
        "seed": Integer(low=-(2**63), high=2**63 - 1),
        "temperature": Number(low=0.0, high=2.0, default=1.0),
        "top_k": Integer(low=0, high=2**31 - 1),
        "top_p": Number(low=0.0, high=1.0, default=1.0),
        "min_p": Number(low=0.0, high=1.0, default=0.0),
        "repeat_penalty": Number(low=0.01, high=10.0, default=1.0),
        "frequency_penalty": Number(low=-2.0, high=2.0, default=0.0),
        "presence_penalty": Number(low=-2.0, high=2.0, default=0.0),
        "logit_bias": dict,
    }
)
STREAM_OPTIONS: Final[Kinds] = MappingProxyType(
    {"include_usage": bool, **make_neutral({"include_obfuscation": (False,)})}
)


def generation_fields(limits: LimitSettings) -> Kinds:
    """Declare what both generating routes have in common."""
    return {**_FIELDS, "max_tokens": Integer(low=1, high=limits.output_tokens)}


def parse_generation(
    fields: Fields,
    *,
    model: str,
    newer_output_tokens: int | None = None,
    default_output_tokens: int | None = None,
    logprobs: int | None = None,
) -> Generation:
    """Check what both generating routes have in common.

    Args:
        fields: The body.
        model: The one model there is.
        newer_output_tokens: Value of the newer field for the length of the answer, where the route has it.
        default_output_tokens: Length of the answer when the client says none; None for what the limits leave.
        logprobs: See `Sampling`; each route has fields of its own for it.

    Raises:
        ApiError: 404 for another model, 400 for anything else, naming the field.
    """
    wanted = check_model(fields, model)
    is_stream = fields.flag("stream")
    output_tokens = fields.integer("max_tokens")
    if None not in {output_tokens, newer_output_tokens} and output_tokens != newer_output_tokens:
        raise fields.fault("max_tokens", "contradicts 'max_completion_tokens'", code="invalid_value")
    return Generation(
        model=wanted,
        is_stream=is_stream,
        wants_usage=_parse_stream_options(fields, is_stream=is_stream),
        output_tokens=newer_output_tokens or output_tokens or default_output_tokens,
        output_field="max_completion_tokens" if newer_output_tokens else "max_tokens",
        sampling=_parse_sampling(fields, logprobs),
        stops=_parse_stops(fields, fields.take("stop")),
        choices=fields.integer("n") or 1,
    )


def check_model(fields: Fields, model: str) -> str:
    """Return the model's name.

    Raises:
        ApiError: 404 for another model, 400 for none.
    """
    wanted = fields.text("model")
    if not wanted:
        raise fields.fault("model", "is missing", code="missing_required_parameter")
    if wanted != model:
        raise ApiError(
            404, f"The model {wanted[:100]!a} does not exist; this server has '{model}'.", param="model",
            code="model_not_found",
        )  # fmt: skip
    return wanted


def _parse_stream_options(fields: Fields, *, is_stream: bool) -> bool:
    options = fields.typed("stream_options", dict)
    if options is None:
        return False
    if not is_stream:
        raise fields.fault("stream_options", "is only allowed when 'stream' is true", code="invalid_value")
    inner = Fields(options, STREAM_OPTIONS, fields.name("stream_options"))
    wants_usage = inner.flag("include_usage")
    inner.finish()
    return wants_usage


def _parse_sampling(fields: Fields, logprobs: int | None) -> Sampling:
    seed = fields.integer("seed")
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little")
    top_k = fields.integer("top_k")
    return Sampling(
        temperature=fields.number("temperature"),
        top_k=top_k or 0,
        top_p=fields.number("top_p"),
        min_p=fields.number("min_p"),
        seed=seed % SEEDS,
        repeat_penalty=fields.number("repeat_penalty"),
        frequency_penalty=fields.number("frequency_penalty"),
        presence_penalty=fields.number("presence_penalty"),
        logit_bias=_parse_logit_bias(fields),
        logprobs=logprobs,
    )


def _parse_logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    """Return pairs of token id and bias; whether the vocabulary has the tokens is the prompt's business."""
    given = fields.typed("logit_bias", dict) or {}
    if len(given) > MOST_BIASES:
        raise fields.fault("logit_bias", f"must hold at most {MOST_BIASES} tokens", code="out_of_range")
    biases = Fields(given, dict.fromkeys(given, BIAS), fields.name("logit_bias"))
    pairs: list[tuple[int, float]] = []
    for key in given:
        if not (key.isascii() and key.isdecimal() and len(key) <= LONGEST_TOKEN_ID):
            raise fields.fault(
                "logit_bias", f"has the key {key[:64]!a}, which is no token id", code="invalid_value"
            )
        pairs.append((int(key), biases.number(key)))
    if len({token for token, _ in pairs}) < len(pairs):
        raise fields.fault("logit_bias", "names a token twice", code="invalid_value")
    return tuple(pairs)


def _parse_stops(fields: Fields, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MOST_STOPS:
        raise fields.fault("stop", f"must hold at most {MOST_STOPS} strings", code="out_of_range")
    for stop in stops:
        if not isinstance(stop, str):
            raise fields.fault("stop", "must be a string or an array of strings", code="invalid_type")
        if not 1 <= len(stop) <= LONGEST_STOP or not is_unicode(stop):
            raise fields.fault(
                "stop", f"must hold strings of 1 to {LONGEST_STOP} characters", code="out_of_range"
            )
    return tuple(stops)

"""What a client may ask for: the bodies of both generating routes as checked, frozen values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from edgeserve.calls import ChatCall, CompletionCall, Generation
from edgeserve.engine.protocol import Sampling
from edgeserve.errors import ApiError
from edgeserve.http.fields import Fields, is_unicode
from edgeserve.settings import LimitSettings

_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MOST_MESSAGES: Final = 2048
_MOST_STOPS, _LONGEST_STOP = 16, 256
_COMPLETION_TOKENS: Final = 16  # OpenAI's default for /v1/completions
_SEEDS: Final = 2**32 - 1  # one less than 32 bits hold: llama.cpp's LLAMA_DEFAULT_SEED means "random"

_UNSUPPORTED: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "n": (1,),
        "logit_bias": ({},),
        "user": (),
        "metadata": ({},),
        "safety_identifier": (),
        "prompt_cache_key": (),
    }
)
_UNSUPPORTED_CHAT: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        **_UNSUPPORTED,
        "logprobs": (False,),
        "top_logprobs": (0,),
        "response_format": ({"type": "text"},),
        "tools": ([],),
        "tool_choice": ("none",),
        "parallel_tool_calls": (),
        "functions": ([],),
        "function_call": ("none",),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "web_search_options": (),
    }
)
_UNSUPPORTED_COMPLETION: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {**_UNSUPPORTED, "logprobs": (), "best_of": (1,), "echo": (False,), "suffix": ("",)}
)
# What an assistant's message holds when a client sends back what it got.
_UNSUPPORTED_MESSAGE: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "name": (),
        "refusal": (),
        "audio": (),
        "annotations": ([],),
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
    }
)


def parse_chat(document: Mapping[str, Any], *, limits: LimitSettings, model: str) -> ChatCall:
    """Check a body of /v1/chat/completions.

    Raises:
        ApiError: 404 for another model, 400 for anything else, naming the field.
    """
    fields = Fields(document)
    fields.refuse(_UNSUPPORTED_CHAT)
    most = fields.integer("max_completion_tokens", low=1, high=limits.output_tokens)
    generation = _parse_generation(fields, limits=limits, model=model, newer_output_tokens=most)
    messages = fields.typed("messages", list)
    fields.finish()
    if not messages:
        raise fields.fault("messages", "must hold at least one message", code="missing_required_parameter")
    if len(messages) > _MOST_MESSAGES:
        raise fields.fault("messages", f"must hold at most {_MOST_MESSAGES} messages", code="out_of_range")
    parsed = tuple(
        _parse_message(fields, item, f"messages[{number}]") for number, item in enumerate(messages)
    )
    return ChatCall(generation=generation, messages=parsed)


def parse_completion(document: Mapping[str, Any], *, limits: LimitSettings, model: str) -> CompletionCall:
    """Check a body of /v1/completions.

    Raises:
        ApiError: 404 for another model, 400 for anything else, naming the field.
    """
    fields = Fields(document)
    fields.refuse(_UNSUPPORTED_COMPLETION)
    default = min(_COMPLETION_TOKENS, limits.output_tokens)
    generation = _parse_generation(fields, limits=limits, model=model, default_output_tokens=default)
    prompt = _parse_prompt(fields, fields.take("prompt"))
    fields.finish()
    return CompletionCall(generation=generation, prompt=prompt)


def _parse_generation(
    fields: Fields,
    *,
    limits: LimitSettings,
    model: str,
    newer_output_tokens: int | None = None,
    default_output_tokens: int | None = None,
) -> Generation:
    wanted = fields.text("model")
    if not wanted:
        raise fields.fault("model", "is missing", code="missing_required_parameter")
    if wanted != model:
        raise ApiError(
            404, f"The model {wanted[:100]!a} does not exist; this server has '{model}'.", param="model",
            code="model_not_found",
        )  # fmt: skip
    is_stream = fields.flag("stream")
    output_tokens = fields.integer("max_tokens", low=1, high=limits.output_tokens)
    if None not in {output_tokens, newer_output_tokens} and output_tokens != newer_output_tokens:
        raise fields.fault("max_tokens", "contradicts 'max_completion_tokens'", code="invalid_value")
    return Generation(
        model=wanted,
        is_stream=is_stream,
        wants_usage=_parse_stream_options(fields, is_stream=is_stream),
        output_tokens=newer_output_tokens or output_tokens or default_output_tokens,
        output_field="max_completion_tokens" if newer_output_tokens else "max_tokens",
        sampling=_parse_sampling(fields),
        stops=_parse_stops(fields, fields.take("stop")),
    )


def _parse_stream_options(fields: Fields, *, is_stream: bool) -> bool:
    options = fields.typed("stream_options", dict)
    if options is None:
        return False
    if not is_stream:
        raise fields.fault("stream_options", "is only allowed when 'stream' is true", code="invalid_value")
    inner = Fields(options, fields.name("stream_options"))
    inner.refuse({"include_obfuscation": (False,)})
    wants_usage = inner.flag("include_usage")
    inner.finish()
    return wants_usage


def _parse_sampling(fields: Fields) -> Sampling:
    seed = fields.integer("seed", low=-(2**63), high=2**63 - 1)
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little")
    top_k = fields.integer("top_k", low=0, high=2**31 - 1)
    return Sampling(
        temperature=fields.number("temperature", 1.0, low=0.0, high=2.0),
        top_k=top_k or 0,
        top_p=fields.number("top_p", 1.0, low=0.0, high=1.0),
        min_p=fields.number("min_p", 0.0, low=0.0, high=1.0),
        seed=seed % _SEEDS,
        repeat_penalty=fields.number("repeat_penalty", 1.0, low=0.01, high=10.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, low=-2.0, high=2.0),
        presence_penalty=fields.number("presence_penalty", 0.0, low=-2.0, high=2.0),
    )


def _parse_stops(fields: Fields, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = value if isinstance(value, list) else [value]
    if len(stops) > _MOST_STOPS:
        raise fields.fault("stop", f"must hold at most {_MOST_STOPS} strings", code="out_of_range")
    for stop in stops:
        if not isinstance(stop, str):
            raise fields.fault("stop", "must be a string or an array of strings", code="invalid_type")
        if not 1 <= len(stop) <= _LONGEST_STOP or not is_unicode(stop):
            raise fields.fault(
                "stop", f"must hold strings of 1 to {_LONGEST_STOP} characters", code="out_of_range"
            )
    return tuple(stops)


def _parse_message(fields: Fields, item: object, path: str) -> Mapping[str, str]:
    if not isinstance(item, dict):
        raise fields.fault(path, "must be an object", code="invalid_type")
    message = Fields(item, path)
    message.refuse(_UNSUPPORTED_MESSAGE)
    role = message.text("role")
    if role not in _ROLES:
        raise message.fault("role", f"must be one of {', '.join(_ROLES)}", code="invalid_value")
    content = message.take("content")
    message.finish()
    return {"role": _ROLES[role], "content": _parse_content(message, content)}


def _parse_content(message: Fields, content: object) -> str:
    """Return the text of a message, given as such or as text parts."""
    if isinstance(content, str):
        parts = [content]
    elif isinstance(content, list) and content:
        parts = [
            _parse_part(message, part, f"{message.name('content')}[{number}]")
            for number, part in enumerate(content)
        ]
    else:
        raise message.fault("content", "must be a string or an array of text parts", code="invalid_type")
    text = "".join(parts)
    if not is_unicode(text):
        raise message.fault("content", "holds half of a surrogate pair", code="invalid_text")
    return text


def _parse_part(message: Fields, part: object, path: str) -> str:
    if not isinstance(part, dict):
        raise message.fault("content", "must be a string or an array of text parts", code="invalid_type")
    fields = Fields(part, path)
    kind = fields.text("type")
    if kind != "text":
        raise fields.fault(
            "type", "must be 'text'; this server takes nothing else", code="unsupported_parameter"
        )
    text = fields.text("text")
    fields.finish()
    if text is None:
        raise fields.fault("text", "is missing", code="missing_required_parameter")
    return text


def _parse_prompt(fields: Fields, value: object) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        if not is_unicode(value):
            raise fields.fault("prompt", "holds half of a surrogate pair", code="invalid_text")
        return value
    if value is None or value == []:
        raise fields.fault("prompt", "is missing", code="missing_required_parameter")
    if isinstance(value, list) and all(type(token) is int for token in value):
        return tuple(value)
    if isinstance(value, list) and all(isinstance(one, (str, list)) for one in value):
        raise fields.fault(
            "prompt", "must be one prompt; this server answers one per request", code="unsupported_parameter"
        )
    raise fields.fault("prompt", "must be a string or an array of token ids", code="invalid_type")

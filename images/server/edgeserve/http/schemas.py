"""What a client may ask for: the bodies of both generating routes as checked, frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgeserve.calls import ChatCall, CompletionCall, Generation, JsonAnswer
from edgeserve.http.fields import Fields, Integer, Kinds, is_unicode, make_neutral, whole_number
from edgeserve.http.generation import generation_fields, parse_generation
from edgeserve.http.messages import parse_messages
from edgeserve.http.response_format import parse_response_format
from edgeserve.http.tools import TOOL_FIELDS, parse_tools
from edgeserve.settings import LimitSettings

_MOST_CHAT_LOGPROBS, _MOST_COMPLETION_LOGPROBS = 20, 5  # OpenAI's bounds
_COMPLETION_TOKENS: Final = 16  # OpenAI's default for /v1/completions

_UNSUPPORTED: Final = make_neutral(
    {
        "user": (),
        "metadata": ({},),
        "safety_identifier": (),
        "prompt_cache_key": (),
    }
)
_UNSUPPORTED_CHAT: Final = make_neutral(
    {
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
_UNSUPPORTED_COMPLETION: Final = make_neutral({"best_of": (1,), "echo": (False,), "suffix": ("",)})


def chat_fields(limits: LimitSettings) -> Kinds:
    """Declare the fields of a body of /v1/chat/completions."""
    return {
        **_UNSUPPORTED,
        **_UNSUPPORTED_CHAT,
        **generation_fields(limits),
        "max_completion_tokens": Integer(low=1, high=limits.output_tokens),
        "messages": list,
        "response_format": dict,
        **TOOL_FIELDS,
        "logprobs": bool,
        "top_logprobs": Integer(low=0, high=_MOST_CHAT_LOGPROBS),
    }


def completion_fields(limits: LimitSettings) -> Kinds:
    """Declare the fields of a body of /v1/completions."""
    return {
        **_UNSUPPORTED,
        **_UNSUPPORTED_COMPLETION,
        **generation_fields(limits),
        "prompt": object,
        "logprobs": Integer(low=0, high=_MOST_COMPLETION_LOGPROBS),
    }


def parse_chat(document: Mapping[str, Any], *, limits: LimitSettings, model: str) -> ChatCall:
    """Check a body of /v1/chat/completions.

    Raises:
        ApiError: 404 for another model, 400 for anything else, naming the field.
    """
    fields = Fields(document, chat_fields(limits))
    most = fields.integer("max_completion_tokens")
    generation = parse_generation(
        fields, model=model, newer_output_tokens=most, logprobs=_parse_chat_logprobs(fields)
    )
    messages = fields.typed("messages", list)
    answer = parse_response_format(fields)
    tools = parse_tools(fields)
    fields.finish()
    if tools is not None:
        _check_beside_tools(fields, generation, answer)
    return ChatCall(
        generation=generation, messages=parse_messages(fields, messages), answer=answer, tools=tools
    )


def parse_completion(document: Mapping[str, Any], *, limits: LimitSettings, model: str) -> CompletionCall:
    """Check a body of /v1/completions.

    Raises:
        ApiError: 404 for another model, 400 for anything else, naming the field.
    """
    fields = Fields(document, completion_fields(limits))
    default = min(_COMPLETION_TOKENS, limits.output_tokens)
    logprobs = fields.integer("logprobs")
    generation = parse_generation(fields, model=model, default_output_tokens=default, logprobs=logprobs)
    prompt = _parse_prompt(fields, fields.take("prompt"))
    fields.finish()
    return CompletionCall(generation=generation, prompt=prompt)


def _parse_chat_logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs")
    count = fields.integer("top_logprobs")
    if count and not wanted:
        raise fields.fault("top_logprobs", "is only allowed when 'logprobs' is true", code="invalid_value")
    return (count or 0) if wanted else None


def _check_beside_tools(fields: Fields, generation: Generation, answer: JsonAnswer | None) -> None:
    """Refuse what is about an answer of text alone.

    Raises:
        ApiError: It is asked for.
    """
    asked = {
        "logprobs": generation.sampling.logprobs is not None,
        "stop": bool(generation.stops),  # it could end a call in the middle
        "response_format": answer is not None,
    }
    for key, is_asked in asked.items():
        if is_asked:
            raise fields.fault(
                key, "cannot be combined with 'tools' that may be called", code="unsupported_parameter"
            )


def _parse_prompt(fields: Fields, value: object) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        if not is_unicode(value):
            raise fields.fault("prompt", "holds half of a surrogate pair", code="invalid_text")
        return value
    if value is None or value == []:
        raise fields.fault("prompt", "is missing", code="missing_required_parameter")
    if isinstance(value, list) and all(whole_number(token) is not None for token in value):
        return tuple(map(int, value))
    if isinstance(value, list) and all(isinstance(one, (str, list)) for one in value):
        raise fields.fault(
            "prompt", "must be one prompt; this server answers one per request", code="unsupported_parameter"
        )
    raise fields.fault("prompt", "must be a string or an array of token ids", code="invalid_type")

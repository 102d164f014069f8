"""The messages of a chat: roles, text, calls of functions and what they gave back, strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from edgeserve.http.fields import Fields, Kinds, is_unicode, make_neutral, take_name
from edgeserve.http.strict_json import load_json
from edgeserve.http.tools import json_text

ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
MOST_MESSAGES: Final = 2048
MOST_CALLS: Final = 128
LONGEST_ID: Final = 64

# What an assistant's message holds when a client sends back what it got.
_UNSUPPORTED: Final = make_neutral(
    {
        "name": (),
        "refusal": (),
        "audio": (),
        "annotations": ([],),
        "function_call": (),
    }
)
MESSAGE: Final[Kinds] = MappingProxyType(
    {"role": str, "content": object, "tool_calls": list, "tool_call_id": str, **_UNSUPPORTED}
)
CALL: Final[Kinds] = MappingProxyType({"id": str, "type": str, "function": dict})
CALLED: Final[Kinds] = MappingProxyType({"name": str, "arguments": str})
PART: Final[Kinds] = MappingProxyType({"type": str, "text": str})


def parse_messages(fields: Fields, messages: Sequence[Any] | None) -> tuple[Mapping[str, Any], ...]:
    """Check the messages of a chat.

    Returns:
        Each as `ChatCall` has it.
    """
    if not messages:
        raise fields.fault("messages", "must hold at least one message", code="missing_required_parameter")
    if len(messages) > MOST_MESSAGES:
        raise fields.fault("messages", f"must hold at most {MOST_MESSAGES} messages", code="out_of_range")
    called: dict[str, str] = {}
    return tuple(
        _parse_message(fields, item, f"messages[{number}]", called) for number, item in enumerate(messages)
    )


def _parse_message(fields: Fields, item: object, path: str, called: dict[str, str]) -> Mapping[str, Any]:
    """Check a message; `called` has the name of the function that each call so far was of, by the call's id."""
    if not isinstance(item, dict):
        raise fields.fault(path, "must be an object", code="invalid_type")
    message = Fields(item, MESSAGE, path)
    role = message.text("role")
    if role not in ROLES:
        raise message.fault("role", f"must be one of {', '.join(ROLES)}", code="invalid_value")
    content = message.take("content")
    calls = message.typed("tool_calls", list)
    answered = message.text("tool_call_id")
    message.finish()
    if calls and role != "assistant":
        raise message.fault("tool_calls", "belongs to messages of the assistant", code="invalid_value")
    if calls:
        return {
            "role": role,
            "content": None if content is None or content == "" else _parse_content(message, content),
            "tool_calls": _parse_calls(message, calls, called),
        }
    parsed = {"role": ROLES[role], "content": _parse_content(message, content)}
    if role == "tool":
        if answered is None:
            raise message.fault("tool_call_id", "is missing", code="missing_required_parameter")
        if answered not in called:
            raise message.fault("tool_call_id", "is the id of no call before it", code="invalid_value")
        return {**parsed, "tool_call_id": answered, "name": called[answered]}
    if answered is not None:
        raise message.fault("tool_call_id", "belongs to messages of the role tool", code="invalid_value")
    return parsed


def _parse_calls(message: Fields, calls: Sequence[Any], called: dict[str, str]) -> list[Mapping[str, Any]]:
    if len(calls) > MOST_CALLS:
        raise message.fault("tool_calls", f"must hold at most {MOST_CALLS} calls", code="out_of_range")
    parsed = []
    for number, item in enumerate(calls):
        call = _parse_call(message, item, f"tool_calls[{number}]")
        called[call["id"]] = call["function"]["name"]
        parsed.append(call)
    return parsed


def _parse_call(message: Fields, item: object, key: str) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise message.fault(key, "must be an object", code="invalid_type")
    call = Fields(item, CALL, message.name(key))
    identity = call.text("id")
    if identity is None or not 1 <= len(identity) <= LONGEST_ID:
        raise call.fault("id", f"must be a text of 1 to {LONGEST_ID} characters", code="invalid_value")
    if call.text("type") not in {None, "function"}:
        raise call.fault("type", "must be 'function'", code="unsupported_parameter")
    inner = call.typed("function", dict)
    call.finish()
    if inner is None:
        raise call.fault("function", "is missing", code="missing_required_parameter")
    function = Fields(inner, CALLED, call.name("function"))
    name = take_name(function)
    arguments = _parse_arguments(function, function.typed("arguments", str))
    function.finish()
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _parse_arguments(function: Fields, text: str | None) -> Mapping[str, Any]:
    """Return the arguments, which are an object as JSON in a text."""
    try:
        arguments = load_json(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or json_text(arguments) is None:
        raise function.fault("arguments", "must be a JSON object, written as a text", code="invalid_value")
    return arguments


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
    fields = Fields(part, PART, path)
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

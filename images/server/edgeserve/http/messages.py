"""The messages of a chat: roles and text, strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from edgeserve.http.fields import Fields, Kinds, is_unicode, make_neutral

ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MOST_MESSAGES: Final = 2048

# What an assistant's message holds when a client sends back what it got.
_UNSUPPORTED: Final = make_neutral(
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
MESSAGE: Final[Kinds] = MappingProxyType({"role": str, "content": object, **_UNSUPPORTED})
PART: Final[Kinds] = MappingProxyType({"type": str, "text": str})


def parse_messages(fields: Fields, messages: Sequence[Any] | None) -> tuple[Mapping[str, str], ...]:
    """Check the messages of a chat.

    Returns:
        For each message `role` and `content`.
    """
    if not messages:
        raise fields.fault("messages", "must hold at least one message", code="missing_required_parameter")
    if len(messages) > MOST_MESSAGES:
        raise fields.fault("messages", f"must hold at most {MOST_MESSAGES} messages", code="out_of_range")
    return tuple(_parse_message(fields, item, f"messages[{number}]") for number, item in enumerate(messages))


def _parse_message(fields: Fields, item: object, path: str) -> Mapping[str, str]:
    if not isinstance(item, dict):
        raise fields.fault(path, "must be an object", code="invalid_type")
    message = Fields(item, MESSAGE, path)
    role = message.text("role")
    if role not in ROLES:
        raise message.fault("role", f"must be one of {', '.join(ROLES)}", code="invalid_value")
    content = message.take("content")
    message.finish()
    return {"role": ROLES[role], "content": _parse_content(message, content)}


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

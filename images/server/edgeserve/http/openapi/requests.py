"""The schemas of request bodies: JSON Schema made of the tables in `edgeserve.http`, with a text for each field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from edgeserve.calls import FUNCTION_NAME
from edgeserve.http.embeddings import ENCODINGS, MOST_INPUTS
from edgeserve.http.embeddings import FIELDS as EMBEDDING_FIELDS
from edgeserve.http.fields import Integer, Kind, Kinds, Neutral, Number
from edgeserve.http.generation import (
    BIAS,
    LONGEST_STOP,
    LONGEST_TOKEN_ID,
    MOST_BIASES,
    MOST_STOPS,
    STREAM_OPTIONS,
)
from edgeserve.http.messages import CALL, CALLED, LONGEST_ID, MESSAGE, MOST_CALLS, MOST_MESSAGES, PART, ROLES
from edgeserve.http.openapi.schema import NULL, TEXT, Schema, array, or_null, ref
from edgeserve.http.response_format import FORM, JSON_SCHEMA
from edgeserve.http.schemas import chat_fields, completion_fields
from edgeserve.http.tools import CHOICE, CHOSEN, FUNCTION, MOST_TOOLS, TOOL
from edgeserve.settings import LimitSettings

_TYPES: Final = {bool: "boolean", str: "string"}
_TEXTS: Final[Mapping[str, str]] = {
    "model": "The model, as /v1/models names it.",
    "stream": "Whether the answer is sent as it grows, as server-sent events.",
    "stream_options": "Only allowed when `stream` is true.",
    "include_usage": "Whether a last event before `[DONE]` has the token counts.",
    "n": "Number of answers; each has a seed of its own and counts as a request.",
    "stop": "Texts at which the answer ends; they are not part of it.",
    "seed": "With the same seed, request and CPU variant, an answer of one stream repeats.",
    "temperature": "0 takes the likeliest token.",
    "top_k": "Draws from so many of the likeliest tokens; 0 is off.",
    "top_p": "Draws from the likeliest tokens that have this probability together; 1 is off.",
    "min_p": "Leaves out tokens less likely than this part of the likeliest one; 0 is off.",
    "repeat_penalty": "Divides the logits of the answer's tokens; 1 is off.",
    "frequency_penalty": "Taken off the logits of the answer's tokens, once for each time; 0 is off.",
    "presence_penalty": "Taken off the logits of the answer's tokens, once; 0 is off.",
    "logit_bias": "Added to the logits of tokens, given by their ids.",
    "max_tokens": "Longest answer.",
    "max_completion_tokens": "Longest answer, the newer name; both together must be the same.",
    "messages": "The chat so far.",
    "response_format": "The form of the answer: text, a JSON object, or JSON valid against a schema.",
    "logprobs": "Natural logarithms of the tokens' probabilities in the model's own distribution: whether, or how many alternatives each.",
    "top_logprobs": "How many alternatives each token comes with; only allowed when `logprobs` is true.",
    "prompt": "One text or one list of token ids. In text, the spellings of control tokens are text.",
    "tools": "What the model may call. Refused where its chat template spells no calls as JSON; not beside `logprobs`, `stop` and `response_format`.",
    "tool_choice": "`auto` is the default; `none` does not tell the model of the tools.",
    "parallel_tool_calls": "Whether an answer may hold several calls, as is the default.",
    "tool_calls": "Only of the assistant.",
    "tool_call_id": "Of messages of the role `tool`, and needed there: the id of a call before.",
    "id": "As it came with the call.",
    "function": "The function.",
    "parameters": "JSON Schema of the arguments, of the type object. Followed exactly; where that cannot be, it is refused if `strict`, and otherwise any object will do.",
    "arguments": "A JSON object, written as a text.",
    "input": "One or several texts, each as text or as a list of token ids.",
    "encoding_format": "The form of the vectors.",
    "role": "`developer` is the same as `system`.",
    "content": "Text, or parts that are joined.",
    "type": "What it is.",
    "text": "The text.",
    "json_schema": "Only allowed when `type` is `json_schema`.",
    "name": "Of the client's choice.",
    "description": "Not used.",
    "strict": "Makes no difference: a schema is always followed to the letter.",
    "schema": "JSON Schema 2020-12. It is followed exactly, or refused with the code `unsupported_schema`.",
}  # fmt: skip
_TOKENS: Final = array({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, least=1)


def request_schemas(limits: LimitSettings, *, model: str) -> dict[str, Schema]:
    """Describe the bodies that a server with these limits accepts, by the names of their schemas."""
    return {
        "ChatCompletionRequest": _object(
            chat_fields(limits),
            required=("model", "messages"),
            own=_generation(model)
            | {
                "messages": array(ref("Message"), least=1, most=MOST_MESSAGES),
                "response_format": ref("ResponseFormat"),
                "tools": array(ref("Tool"), most=MOST_TOOLS),
                "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, ref("NamedTool")]},
            },
        ),
        "CompletionRequest": _object(
            completion_fields(limits),
            required=("model", "prompt"),
            own=_generation(model) | {"prompt": _prompt()},
        ),
        "EmbeddingRequest": _object(
            EMBEDDING_FIELDS,
            required=("model", "input"),
            own={
                "model": {"const": model},
                "input": _input(),
                "encoding_format": {"type": "string", "enum": list(ENCODINGS), "default": ENCODINGS[0]},
            },
        ),
        "StreamOptions": _object(STREAM_OPTIONS),
        "Message": _object(
            MESSAGE,
            required=("role",),
            own={
                "role": {"type": "string", "enum": list(ROLES)},
                "content": {
                    "anyOf": [TEXT, array(ref("TextPart"), least=1)],
                    "description": "Text, or parts that are joined; null only beside `tool_calls`.",
                },
                "tool_calls": array(ref("MessageToolCall"), most=MOST_CALLS),
            },
        ),
        **_tools(),
        "TextPart": _object(PART, required=("type", "text"), own={"type": {"const": "text"}}),
        "ResponseFormat": {"oneOf": [_form("text"), _form("json_object"), _form("json_schema")]},
        "JsonSchemaFormat": _object(
            JSON_SCHEMA,
            required=("name", "schema"),
            own={
                "name": {"type": "string", "pattern": f"^{FUNCTION_NAME.pattern}$"},
                "schema": {"type": "object"},
            },
        ),
    }


def _tools() -> dict[str, Schema]:
    name: Schema = {"type": "string", "pattern": f"^{FUNCTION_NAME.pattern}$"}
    function: Schema = {"const": "function"}
    return {
        "MessageToolCall": _object(
            CALL,
            required=("id", "function"),
            own={
                "id": {"type": "string", "minLength": 1, "maxLength": LONGEST_ID},
                "type": function,
                "function": _object(CALLED, required=("name",), own={"name": name}),
            },
        ),
        "Tool": _object(
            TOOL,
            required=("type", "function"),
            own={
                "type": function,
                "function": _object(
                    FUNCTION,
                    required=("name",),
                    own={
                        "name": name,
                        "description": {"type": "string", "description": "For the model."},
                        "parameters": _parameters(),
                        "strict": {"type": "boolean", "description": "See `parameters`."},
                    },
                ),
            },
        ),
        "NamedTool": _object(
            CHOICE,
            required=("type", "function"),
            own={"type": function, "function": _object(CHOSEN, required=("name",), own={"name": name})},
        ),
    }


def _parameters() -> Schema:
    is_object: Schema = {"type": "object", "properties": {"type": {"const": "object"}}, "required": ["type"]}
    return {"anyOf": [is_object, {"type": "object", "maxProperties": 0}]}


def _generation(model: str) -> dict[str, Schema]:
    return {
        "model": {"const": model},
        "stream_options": ref("StreamOptions"),
        "stop": {"anyOf": [_stop(), array(_stop(), most=MOST_STOPS)]},
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": f"^[0-9]{{1,{LONGEST_TOKEN_ID}}}$"},
            "maxProperties": MOST_BIASES,
            "additionalProperties": _property(BIAS),
        },
    }


def _stop() -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}


def _prompt() -> Schema:
    one = {"anyOf": [TEXT, _TOKENS]}
    return {"anyOf": [TEXT, _TOKENS, array(one, least=1, most=1)]}


def _input() -> Schema:
    text: Schema = {"type": "string", "minLength": 1}
    one = {"anyOf": [text, _TOKENS]}
    return {"anyOf": [text, _TOKENS, array(one, least=1, most=MOST_INPUTS)]}


def _form(kind: str) -> Schema:
    if kind != "json_schema":
        return _object(FORM, required=("type",), own={"type": {"const": kind}, "json_schema": NULL})
    return _object(
        FORM,
        required=("type", "json_schema"),
        own={"type": {"const": kind}, "json_schema": ref("JsonSchemaFormat")},
    )


def _object(kinds: Kinds, *, required: Sequence[str] = (), own: Mapping[str, Schema] | None = None) -> Schema:
    """Describe an object by its table.

    Args:
        kinds: The table.
        required: Fields that must be there and not null.
        own: Schemas of the fields about which the table does not say all.
    """
    properties: dict[str, Schema] = {}
    for name, kind in kinds.items():
        schema = (own or {}).get(name) or _property(kind)
        text = schema.get("description") or _TEXTS[name]
        properties[name] = (schema if name in required else or_null(schema)) | {"description": text}
    described: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return described | ({"required": list(required)} if required else {})


def _property(kind: Kind) -> Schema:
    """Describe a field by what the table says.

    Raises:
        KeyError: The table does not say all; the caller has to.
    """
    match kind:
        case Integer():
            return {"type": "integer", "minimum": kind.low, "maximum": kind.high}
        case Number():
            return {"type": "number", "minimum": kind.low, "maximum": kind.high, "default": kind.default}
        case Neutral():
            return {"enum": list(kind.values), "description": "Not supported; these values ask for nothing."}
        case _:
            return {"type": _TYPES[kind]}

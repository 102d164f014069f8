"""The schemas of answers, and what every route may answer besides; a test compares them with a server's real answers."""

from __future__ import annotations

from edgeserve.engine.protocol import FinishReason
from edgeserve.http.openapi.schema import COUNT, NULL, TEXT, Schema, array, or_null, ref, whole
from edgeserve.scheduler import State


def answer_schemas() -> dict[str, Schema]:
    """Describe all answers, by the names of their schemas."""
    return {
        "ChatCompletion": _answer("chat.completion", ref("ChatChoice"), usage=ref("Usage")),
        "ChatChoice": _choice(
            message=_message(),
            logprobs=or_null(ref("ChatLogprobs")),
            finish_reason=ref("FinishReason"),
        ),
        "ChatCompletionChunk": _chunk("chat.completion.chunk", ref("ChatChunkChoice")),
        "ChatChunkChoice": _choice(
            delta={
                "type": "object",
                "properties": {
                    "role": {"const": "assistant"},
                    "content": TEXT,
                    "tool_calls": array(ref("ToolCallPart"), least=1, most=1),
                },
                "additionalProperties": False,
            },
            logprobs=or_null(ref("ChatLogprobs")),
            finish_reason=or_null(ref("FinishReason")),
        ),
        "Completion": _answer("text_completion", ref("CompletionChoice"), usage=ref("Usage")),
        "CompletionChoice": _choice(
            text=TEXT,
            logprobs=or_null(ref("CompletionLogprobs")),
            finish_reason=ref("FinishReason"),
        ),
        "CompletionChunk": _chunk("text_completion", ref("CompletionChunkChoice")),
        "CompletionChunkChoice": _choice(
            text=TEXT,
            logprobs=or_null(ref("CompletionLogprobs")),
            finish_reason=or_null(ref("FinishReason")),
        ),
        "FinishReason": {
            "type": "string",
            "enum": [
                reason.value for reason in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS)
            ],
        },
        **_tool_schemas(),
        "Usage": whole(
            prompt_tokens=COUNT,
            completion_tokens=COUNT,
            total_tokens=COUNT,
            prompt_tokens_details=whole(cached_tokens=COUNT),
        ),
        "EmbeddingList": whole(
            object={"const": "list"},
            data=array(ref("Embedding"), least=1),
            model=TEXT,
            usage=whole(prompt_tokens=COUNT, total_tokens=COUNT),
        ),
        "Embedding": whole(
            object={"const": "embedding"},
            index=COUNT,
            embedding={
                "anyOf": [array({"type": "number"}), TEXT],
                "description": "A vector of length 1: numbers, or 32-bit floats, little endian, in base64.",
            },
        ),
        **_logprobs_schemas(),
        **_other_schemas(),
    }


def _message() -> Schema:
    message = whole(role={"const": "assistant"}, content={"type": ["string", "null"]}, refusal=NULL)
    message["properties"]["tool_calls"] = array(ref("ToolCall"), least=1)
    return message


def _tool_schemas() -> dict[str, Schema]:
    first = whole(
        index=COUNT, id=TEXT, type={"const": "function"}, function=whole(name=TEXT, arguments={"const": ""})
    )
    more = whole(index=COUNT, function=whole(arguments=TEXT))
    return {
        "ToolCall": whole(id=TEXT, type={"const": "function"}, function=whole(name=TEXT, arguments=TEXT)),
        "ToolCallPart": {
            "oneOf": [first, more],
            "description": "The first part of a call has its name; the arguments, JSON in a text, follow in parts.",
        },
    }


def _logprobs_schemas() -> dict[str, Schema]:
    logprob: Schema = {"type": "number", "maximum": 0}
    likelihood: Schema = {
        "token": TEXT,
        "logprob": logprob,
        "bytes": array({"type": "integer", "minimum": 0, "maximum": 255}),
    }
    return {
        "ChatLogprobs": whole(
            content=array(whole(**likelihood, top_logprobs=array(whole(**likelihood)))), refusal=NULL
        ),
        "CompletionLogprobs": whole(
            tokens=array(TEXT),
            token_logprobs=array(logprob),
            top_logprobs=array({"type": "object", "additionalProperties": logprob}),
            text_offset=array(COUNT),
        ),
    }


def _other_schemas() -> dict[str, Schema]:
    return {
        "Model": whole(id=TEXT, object={"const": "model"}, created=COUNT, owned_by={"const": "edgeserve"}),
        "ModelList": whole(object={"const": "list"}, data=array(ref("Model"))),
        "Alive": whole(status={"const": "alive"}),
        "Ready": whole(status={"const": State.READY.value}, model=TEXT, cpu_variant=TEXT),
        "NotReady": whole(status={"enum": [state.value for state in State if state is not State.READY]}),
        "Error": whole(
            error=whole(
                message={"type": "string", "description": "For the client's developer."},
                type={"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
                param={"type": ["string", "null"], "description": "The field at fault."},
                code={"type": ["string", "null"], "description": "For the client's program."},
            )
        ),
    }


def refusals() -> dict[str, Schema]:
    """Describe the answers to requests that are not served, by their names."""
    retry_after = {"Retry-After": {"description": "Seconds.", "schema": COUNT}}
    is_final = {"X-Should-Retry": {"description": "`false`: another try will not help.", "schema": TEXT}}
    return {
        "Invalid": _refusal(
            "A fault of the request; `param` names the field. Codes: the field's fault, `unsupported_schema`, "
            "`context_length_exceeded`, `no_generation`, `no_embeddings`, `no_chat_template`, `chat_template_error`, `invalid_json`."
        ),
        "Unauthorized": _refusal(
            "`missing_api_key`, `invalid_api_key`.", {"WWW-Authenticate": {"required": True, "schema": TEXT}}
        ),
        "NotFound": _refusal("`model_not_found`."),
        "TooSlow": _refusal("`body_timeout`: the body did not arrive in time.", is_final),
        "TooLarge": _refusal("`body_too_large`."),
        "NotJson": _refusal("`unsupported_media_type`: the body is not declared as application/json."),
        "Busy": _refusal("`queue_full`, `client_limit`, `busy`.", _required(retry_after)),
        "Failed": _refusal("`engine_error`, `internal`."),
        "Unavailable": _refusal(
            "`loading`, `shutting_down`, `audit_failed`, `too_many_connections`; `engine_failed`, which has no Retry-After.",
            retry_after | is_final,
        ),
        "TookTooLong": _refusal("`first_token_timeout`, `deadline_exceeded`.", _required(is_final)),
    }


def _refusal(text: str, headers: Schema | None = None) -> Schema:
    described: Schema = {"description": text, "content": {"application/json": {"schema": ref("Error")}}}
    return described | ({"headers": headers} if headers else {})


def _required(headers: Schema) -> Schema:
    return {name: header | {"required": True} for name, header in headers.items()}


def _answer(kind: str, choice: Schema, **more: Schema) -> Schema:
    return whole(
        id=TEXT,
        object={"const": kind},
        created=COUNT,
        model=TEXT,
        system_fingerprint={"type": "string", "description": "What a seed's result depends on besides the request."},
        choices=array(choice),
        **more,
    )  # fmt: skip


def _chunk(kind: str, choice: Schema) -> Schema:
    """Describe one event; `usage` is there in all of a stream that asks for it, and null in all but the last."""
    chunk = _answer(kind, choice)
    chunk["properties"]["usage"] = or_null(ref("Usage"))
    return chunk


def _choice(**more: Schema) -> Schema:
    return whole(index=COUNT, **more)

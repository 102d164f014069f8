"""From protocol buffers to the calls that every interface makes, and from outputs back to protocol buffers.

Fields have the names of the HTTP interface's, so a request becomes the same document and goes through the same checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from edgeserve import __version__
from edgeserve.answers import End
from edgeserve.calls import ChatCall, CompletionCall
from edgeserve.engine.protocol import FinishReason, ModelFacts
from edgeserve.errors import ApiError, invalid
from edgeserve.grpc.edge.v1 import inference_pb2 as pb
from edgeserve.http.messages import MOST_MESSAGES
from edgeserve.http.schemas import parse_chat, parse_completion
from edgeserve.settings import LimitSettings, Runtime

_ROLES: Final[Mapping[int, str]] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
}
_REASONS: Final[Mapping[FinishReason, pb.FinishReason]] = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def generate_call(
    request: pb.GenerateRequest, *, limits: LimitSettings, model: str
) -> ChatCall | CompletionCall:
    """Check a request to Generate.

    Raises:
        ApiError: 404 for another model, 400 for anything else, naming the field.
    """
    _refuse_unknown(request, "")
    _check_inputs(
        messages=len(request.messages),
        prompt=request.HasField("prompt"),
        prompt_tokens=len(request.prompt_tokens),
    )
    document = _document(request, model=model)
    document["stream"] = True
    if request.messages:
        return parse_chat(document, limits=limits, model=model)
    if request.prompt_tokens:
        document["prompt"] = document.pop("prompt_tokens")
    call = parse_completion(document, limits=limits, model=model)
    if request.HasField("max_tokens"):
        return call
    # OpenAI's default of 16 tokens is for /v1/completions only.
    return replace(call, generation=replace(call.generation, output_tokens=None))


def tokenize_call(
    request: pb.TokenizeRequest, *, limits: LimitSettings, model: str
) -> ChatCall | CompletionCall:
    """Check a request to Tokenize.

    Raises:
        ApiError: See `generate_call`.
    """
    _refuse_unknown(request, "")
    _check_inputs(messages=len(request.messages), prompt=request.HasField("prompt"))
    document = _document(request, model=model)
    parse = parse_chat if request.messages else parse_completion
    return parse(document, limits=limits, model=model)


def check_model_request(request: pb.GetModelRequest, *, model: str) -> None:
    """Check a request to GetModel.

    Raises:
        ApiError: 404 for another model, 400 for anything else.
    """
    _refuse_unknown(request, "")
    if request.model not in {"", model}:
        raise ApiError(
            404,
            f"The model {request.model[:100]!a} does not exist; this server has '{model}'.",
            param="model",
            code="model_not_found",
        )


def _check_inputs(**counts: int) -> None:
    given = [name for name, count in counts.items() if count]
    names = " and ".join((", ".join(f"'{name}'" for name in counts)).rsplit(", ", 1))
    if not given:
        raise invalid(f"One of {names} is needed.", next(iter(counts)), code="missing_required_parameter")
    if len(given) > 1:
        raise invalid(
            f"'{given[1]}' stands beside '{given[0]}'; only one of {names} can be given.",
            given[1],
            code="invalid_value",
        )


def _document(request: pb.GenerateRequest | pb.TokenizeRequest, *, model: str) -> dict[str, Any]:
    """Write the fields that are set as the HTTP interface's document."""
    document = {field.name: value for field, value in request.ListFields()}
    document.setdefault("model", model)
    for name in document.keys() & {"stop", "prompt_tokens"}:
        document[name] = list(document[name])
    if "messages" in document:
        if len(request.messages) > MOST_MESSAGES:
            # Before each is looked at: a request has room for half a million.
            raise invalid(
                f"'messages' must hold at most {MOST_MESSAGES} messages.", "messages", code="out_of_range"
            )
        document["messages"] = list(_turns(request.messages))
    return document


def _turns(messages: Iterable[pb.Message]) -> Iterable[dict[str, str]]:
    for number, message in enumerate(messages):
        path = f"messages[{number}]"
        _refuse_unknown(message, f"{path}.")
        role = _ROLES.get(message.role)
        if role is None:
            known = ", ".join(pb.Role.Name(value) for value in _ROLES)
            raise invalid(f"'{path}.role' must be one of {known}.", f"{path}.role", code="invalid_value")
        yield {"role": role, "content": message.content}


def _refuse_unknown(message: Message, path: str) -> None:
    """Refuse fields of a later version of the interface, which could not be done."""
    fields: Any = UnknownFieldSet(message)  # a sequence, though typeshed does not say so
    for field in fields:
        name = f"{path}{field.field_number}"
        raise invalid(
            f"'{name}' is not the number of a field that this server knows.", name, code="unknown_parameter"
        )


def end_message(end: End) -> pb.GenerateResponse:
    """Make the last message of an answer."""
    return pb.GenerateResponse(
        finish_reason=_REASONS[end.reason],
        usage=pb.Usage(
            prompt_tokens=end.prompt_tokens,
            cached_tokens=end.cached_tokens,
            output_tokens=end.output_tokens,
        ),
    )


def model_message(runtime: Runtime, facts: ModelFacts) -> pb.GetModelResponse:
    """Describe model and limits."""
    limits = runtime.server.limits
    return pb.GetModelResponse(
        name=runtime.model.name,
        description=facts.description,
        engine=runtime.engine.name,
        cpu_variant=facts.cpu_variant,
        server_version=__version__,
        context_tokens=facts.context_tokens,
        trained_context_tokens=facts.trained_context_tokens,
        vocabulary_tokens=facts.vocabulary_tokens,
        slots=facts.slots,
        has_chat_template=facts.chat_template is not None,
        limits=pb.Limits(
            prompt_tokens=facts.longest_prompt(limits.prompt_tokens),
            output_tokens=limits.output_tokens,
            message_bytes=limits.body_bytes,
            request_seconds=limits.request_s,
            queue=limits.queue,
        ),
    )

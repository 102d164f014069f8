"""/v1/embeddings: its fields, and its answer, which is written as the vectors come."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

from edgeserve.answers import Embedding, End, Fault, Output, Text, ToolCall
from edgeserve.calls import EmbeddingCall
from edgeserve.errors import from_fault
from edgeserve.http.answer import unless_gone
from edgeserve.http.exchange import Exchange
from edgeserve.http.fields import Fields, Kinds, is_unicode, make_neutral, whole_number
from edgeserve.http.generation import check_model

MOST_INPUTS: Final = 2048  # OpenAI's bound
ENCODINGS: Final = ("float", "base64")
FIELDS: Final[Kinds] = {
    "model": str,
    "input": object,
    "encoding_format": str,
    **make_neutral({"dimensions": (), "user": ()}),
}


def parse_embeddings(document: Mapping[str, Any], *, model: str) -> EmbeddingCall:
    """Check a body.

    Raises:
        ApiError: 404 for another model, 400 for anything else, naming the field.
    """
    fields = Fields(document, FIELDS)
    wanted = check_model(fields, model)
    inputs = _parse_input(fields, fields.take("input"))
    encoding = fields.text("encoding_format")
    if encoding not in {None, *ENCODINGS}:
        raise fields.fault("encoding_format", f"must be one of {', '.join(ENCODINGS)}", code="invalid_value")
    fields.finish()
    return EmbeddingCall(model=wanted, inputs=inputs, is_base64=encoding == "base64")


def _parse_input(fields: Fields, value: object) -> tuple[str | tuple[int, ...], ...]:
    if value is None or value == []:
        raise fields.fault("input", "is missing", code="missing_required_parameter")
    if isinstance(value, list) and whole_number(value[0]) is None:
        if len(value) > MOST_INPUTS:
            raise fields.fault("input", f"must hold at most {MOST_INPUTS} texts", code="out_of_range")
        return tuple(_parse_text(fields, one, f"input[{number}]") for number, one in enumerate(value))
    return (_parse_text(fields, value, "input"),)


def _parse_text(fields: Fields, value: object, key: str) -> str | tuple[int, ...]:
    if value in ("", []):
        raise fields.fault(key, "is empty", code="invalid_value")
    if isinstance(value, str):
        if not is_unicode(value):
            raise fields.fault(key, "holds half of a surrogate pair", code="invalid_text")
        return value
    if isinstance(value, list) and all(whole_number(token) is not None for token in value):
        return tuple(map(int, value))
    raise fields.fault(key, "must be a text or an array of token ids", code="invalid_type")


async def send_embeddings(
    exchange: Exchange, outputs: AsyncGenerator[Output, None], call: EmbeddingCall
) -> None:
    """Send the vectors of all texts.

    Raises:
        ApiError: The request ended before they were made.
        ClientGoneError: The client left.
    """
    await unless_gone(exchange, _send(exchange, outputs, call))


async def _send(exchange: Exchange, outputs: AsyncGenerator[Output, None], call: EmbeddingCall) -> None:
    encode = _base64 if call.is_base64 else _numbers
    parts: list[bytes] = []
    async with aclosing(outputs):
        async for output in outputs:
            assert not isinstance(output, (Text, ToolCall))
            match output:
                case Embedding():
                    # One by one: all at once would hold up the event loop.
                    parts.append(_HEAD % len(parts) + encode(output.values) + b"}")
                case End():
                    await exchange.answer(200, _document(call, parts, output))
                case Fault():
                    raise from_fault(output)


_HEAD: Final = b'{"object":"embedding","index":%d,"embedding":'


def _numbers(values: bytes) -> bytes:
    """Write 32-bit floats with the nine digits that tell them apart."""
    return b"[" + ",".join(map("{:.9g}".format, array("f", values))).encode() + b"]"


def _base64(values: bytes) -> bytes:
    return b'"' + base64.b64encode(values) + b'"'


def _document(call: EmbeddingCall, parts: list[bytes], end: End) -> bytes:
    usage = {"prompt_tokens": end.prompt_tokens, "total_tokens": end.prompt_tokens}
    tail = json.dumps({"model": call.model, "usage": usage}, separators=(",", ":")).encode()
    return b'{"object":"list","data":[' + b",".join(parts) + b"]," + tail[1:]

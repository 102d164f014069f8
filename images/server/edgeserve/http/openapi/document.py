"""The whole document: what this very server offers, whom it lets in, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from edgeserve import __version__
from edgeserve.http.openapi.answers import answer_schemas, refusals
from edgeserve.http.openapi.requests import request_schemas
from edgeserve.http.openapi.schema import TEXT, ref
from edgeserve.settings import Runtime

Document = dict[str, Any]

_STATUSES: Final = {
    "400": "Invalid",
    "401": "Unauthorized",
    "404": "NotFound",
    "408": "TooSlow",
    "413": "TooLarge",
    "415": "NotJson",
    "429": "Busy",
    "500": "Failed",
    "503": "Unavailable",
    "504": "TookTooLong",
}
_SCHEMES: Final[Document] = {
    "key": {"type": "http", "scheme": "bearer", "description": "A key of the server's key file."},
    "certificate": {"type": "mutualTLS", "description": "A client certificate of an authority in ca.crt."},
}
_DESCRIPTION: Final = (
    "OpenAI's interface to one language model on a device. Every error has OpenAI's form. Beside what stands at each route, any request "
    "may be answered with 400 `invalid_http`, 405 `method_not_allowed`, 408 `header_timeout` or 503 `too_many_connections`. "
    "GET routes answer HEAD too."
)


def make_document(runtime: Runtime, *, ways: Sequence[Sequence[str]]) -> Document:
    """Describe a server.

    Args:
        runtime: Its configuration.
        ways: In which ways a request comes in, see `edgeserve.access.opening.Access`.
    """
    metrics = runtime.server.metrics
    paths = {
        "/v1/chat/completions": {
            "post": _generating("createChatCompletion", "Go on with a chat", "ChatCompletion")
        },
        "/v1/completions": {"post": _generating("createCompletion", "Go on with a text", "Completion")},
        "/v1/embeddings": {"post": _embedding()},
        "/v1/models": {"get": _reading("listModels", "List the one model", "ModelList", "401")},
        "/v1/models/{model}": {
            "parameters": [
                {
                    "name": "model",
                    "in": "path",
                    "required": True,
                    "schema": {"const": runtime.model.name},
                }
            ],
            "get": _reading("retrieveModel", "Describe the model", "Model", "401", "404"),
        },
        "/livez": {"get": _open(_reading("live", "Say that the process serves", "Alive"))},
        "/readyz": {"get": _open(_ready())},
        "/openapi.json": {"get": _openapi()},
    }
    if metrics.enabled:
        paths["/metrics"] = {"get": _open(_scrape()) if metrics.open else _scrape()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeserve",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{name: [] for name in way} for way in ways],
        "paths": paths,
        "components": {
            "schemas": request_schemas(runtime.server.limits, model=runtime.model.name) | answer_schemas(),
            "responses": refusals(),
            "securitySchemes": {name: _SCHEMES[name] for way in ways for name in way},
        },
    }


def _embedding() -> Document:
    return {
        "operationId": "createEmbedding",
        "summary": "Embed texts, by models that are made for that",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref("EmbeddingRequest")}},
        },
        "responses": {
            "200": {
                "description": "A vector for each text.",
                "content": {"application/json": {"schema": ref("EmbeddingList")}},
            },
            **_refused(*_STATUSES),
        },
    }


def _generating(name: str, summary: str, schema: str) -> Document:
    """Describe a route that generates; its schemas are called after its answer's."""
    # As OpenAPI 3.2 has it, which is the first with a word for the items of a stream: the schema is that of one event.
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [ref(f"{schema}Chunk"), ref("Error")]},
    }
    event = {
        "type": "object",
        "description": "A server-sent event. A fault in the middle is an Error before the last.",
        "properties": {"data": {"anyOf": [data, {"const": "[DONE]"}]}},
        "required": ["data"],
    }
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref(f"{schema}Request")}},
        },
        "responses": {
            "200": {
                "description": "The answer, as a whole or, with `stream`, as it grows.",
                "content": {
                    "application/json": {"schema": ref(schema)},
                    "text/event-stream": {"schema": event},
                },
            },
            **_refused(*_STATUSES),
        },
    }


def _reading(name: str, summary: str, schema: str, *statuses: str) -> Document:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _json("It.", ref(schema)), **_refused(*statuses)},
    }


def _ready() -> Document:
    operation = _reading("ready", "Say whether requests are answered now", "Ready")
    operation["responses"]["503"] = _json("Not yet, or not any more.", ref("NotReady"))
    return operation


def _openapi() -> Document:
    responses = {"200": _json("It.", {"type": "object"}), **_refused("401")}
    return {"operationId": "describe", "summary": "This document", "responses": responses}


def _scrape() -> Document:
    content = {"text/plain": {"schema": TEXT}}
    responses = {"200": {"description": "Prometheus' text format.", "content": content}, **_refused("401")}
    return {"operationId": "scrape", "summary": "Figures for Prometheus", "responses": responses}


def _open(operation: Document) -> Document:
    """Describe a route that anyone may ask."""
    operation["responses"].pop("401", None)
    return operation | {"security": []}


def _json(text: str, schema: Document) -> Document:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _refused(*statuses: str) -> Document:
    return {status: {"$ref": f"#/components/responses/{_STATUSES[status]}"} for status in statuses}

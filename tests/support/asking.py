"""Asks an edgeserve process over HTTP, in the clear or not, one connection for each question."""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.llama import MODEL_NAME, ServerProcess

COMPLETION = "/v1/completions"
GO: Mapping[str, Any] = {"model": MODEL_NAME, "prompt": "go", "temperature": 0}
LOOP: Mapping[str, Any] = {"model": MODEL_NAME, "prompt": "loop", "temperature": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; header names are in lower case."""

    status: int
    document: Any
    headers: Mapping[str, str]

    @property
    def code(self) -> str:
        return str(self.document["error"]["code"])


def connect(server: ServerProcess, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    """Make a connection, with TLS if there is a context."""
    if context is None:
        return http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    return http.client.HTTPSConnection("127.0.0.1", server.port, timeout=120, context=context)


def ask_on(
    connection: http.client.HTTPConnection,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Ask on a connection that stays open if the server lets it."""
    if body is None:
        connection.request("GET", path, headers=dict(headers or {}))
    else:
        given = {"Content-Type": "application/json", **(headers or {})}
        connection.request("POST", path, json.dumps(body), given)
    response = connection.getresponse()
    text = response.read()
    return Answer(
        status=response.status,
        document=json.loads(text) if text else None,
        headers={name.lower(): value for name, value in response.getheaders()},
    )


def ask(
    server: ServerProcess,
    path: str,
    body: Any = None,
    *,
    context: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Ask once."""
    connection = connect(server, context)
    try:
        return ask_on(connection, path, body, headers)
    finally:
        connection.close()


def answers(server: ServerProcess, *, context: ssl.SSLContext | None = None, key: str | None = None) -> bool:
    """Whether the scripted model says what it always says."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    answer = ask(server, COMPLETION, GO, context=context, headers=headers)
    return answer.status == 200 and answer.document["choices"][0]["text"].startswith("Hello")

"""A real edgeserve process, asked by bare sockets: bounds, refusals, and clients that misbehave."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.llama import MODEL_NAME, ServerProcess, running_server

_JSON = {"Content-Type": "application/json"}
_CHAT = "/v1/chat/completions"
_COMPLETION = "/v1/completions"
_LOOP: dict[str, Any] = {"model": MODEL_NAME, "prompt": "loop", "temperature": 0}
_GO: dict[str, Any] = {"model": MODEL_NAME, "prompt": "go", "temperature": 0}
# What a server needs so that "loop" keeps it busy for as long as a test looks at it.
_ENDLESS = {"engine.context_tokens": 65536, "server.limits.output_tokens": 65000, "engine.slots": 1}


def _ask(
    server: ServerProcess, path: str, body: Any = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, data, _JSON | headers)
        response = connection.getresponse()
        text = response.read()
        return (
            response.status,
            json.loads(text) if text else None,
            {k.lower(): v for k, v in response.getheaders()},
        )
    finally:
        connection.close()


def _answers(server: ServerProcess) -> bool:
    status, document, _ = _ask(server, _COMPLETION, _GO)
    return status == 200 and document["choices"][0]["text"].startswith("Hello")


def _open_stream(server: ServerProcess, **more: Any) -> socket.socket:
    """Send a request for an endless stream and return once its first event is there."""
    data = json.dumps(_LOOP | {"stream": True, "max_tokens": 60000} | more).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head = f"POST {_COMPLETION} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    seen = b""
    while b"data: " not in seen:
        part = connection.recv(4096)
        assert part, seen
        seen += part
    return connection


@pytest.fixture(scope="module")
def endless(
    llama_host: Path, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("endless")
    with running_server(llama_host, folder, scripted_model, _ENDLESS | {"server.limits.queue": 0}) as server:
        yield server


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": "tiny", "model": "tiny"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"model": "\xff\xfe"}',
        b"[" * 60000,
        b'{"a":' * 10000,
        b"\x00" * 100,
        b"{} {}",
    ],
)
def test_what_is_no_acceptable_json(scripted_server: ServerProcess, body: bytes) -> None:
    status, document, _ = _ask(scripted_server, _CHAT, body)
    assert (status, document["error"]["code"]) == (400, "invalid_json")


def test_other_content_types_are_refused(scripted_server: ServerProcess) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, document, _ = _ask(scripted_server, _CHAT, b"{}", **{"Content-Type": kind})
        assert (status, document["error"]["code"]) == (415, "unsupported_media_type")
    assert (
        _ask(scripted_server, _COMPLETION, _GO, **{"Content-Type": "application/json; charset=utf-8"})[0]
        == 200
    )


def test_unknown_paths_and_methods(scripted_server: ServerProcess) -> None:
    assert _ask(scripted_server, "/nowhere")[0] == 404
    assert _ask(scripted_server, "/v1/images/generations", {})[0] == 404
    status, document, headers = _ask(scripted_server, _CHAT)
    assert (status, headers["allow"], document["error"]["code"]) == (405, "POST", "method_not_allowed")
    assert _ask(scripted_server, "/readyz", {})[0] == 405


def test_probes(scripted_server: ServerProcess) -> None:
    assert _ask(scripted_server, "/livez")[:2] == (200, {"status": "alive"})
    status, document, _ = _ask(scripted_server, "/readyz")
    assert status == 200
    maps = Path(f"/proc/{scripted_server.process.pid}/maps").read_text()
    assert document == {"status": "ready", "model": MODEL_NAME, "cpu_variant": document["cpu_variant"]}
    assert f"libggml-cpu-{document['cpu_variant']}.so" in maps


def test_a_body_declared_too_large_is_refused_before_it_comes(scripted_server: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", scripted_server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9999999999\r\n\r\n{"
        )
        answer = b""
        while b"}}" not in answer:
            part = connection.recv(65536)
            assert part, answer
            answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code": "body_too_large"' in answer
    assert b"connection: close" in answer.lower()


def test_a_body_that_turns_out_too_large_is_refused(scripted_server: ServerProcess) -> None:
    status, document, _ = _ask(scripted_server, _COMPLETION, _GO | {"prompt": "x" * 70_000})
    assert (status, document["error"]["code"]) == (413, "body_too_large")


def test_a_chunked_body_is_counted(scripted_server: ServerProcess) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"model": "tiny", "prompt": "'
        for _ in range(200):
            yield b"x" * 1000

    connection = http.client.HTTPConnection("127.0.0.1", scripted_server.port, timeout=10)
    connection.request("POST", _COMPLETION, chunks(), _JSON, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "body_too_large"
    connection.close()


def test_an_endless_body_is_cut_off(scripted_server: ServerProcess) -> None:
    sent = 0
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", scripted_server.port), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        try:
            while sent < 1 << 30:
                connection.sendall(chunk)
                sent += len(chunk)
        except ConnectionError:
            pass
    # The server reads on for a moment before it closes, so that a client which stops still gets the answer.
    assert sent < 1 << 27
    assert _answers(scripted_server)


def test_a_body_cut_short_leaves_nothing_behind(scripted_server: ServerProcess) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", scripted_server.port)) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b'Content-Length: 100\r\n\r\n{"model"'
            )
    scripted_server.wait_for("outcome=client_gone")
    assert _answers(scripted_server)


def test_what_is_no_http(scripted_server: ServerProcess) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"A" * 100_000,
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", scripted_server.port), timeout=5) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            try:
                connection.recv(65536)
            except ConnectionResetError:
                continue
    assert _answers(scripted_server)


def test_the_queue_is_bounded(endless: ServerProcess) -> None:
    with _open_stream(endless):
        status, document, headers = _ask(endless, _COMPLETION, _GO)
        assert (status, document["error"]["code"], document["error"]["type"]) == (
            429,
            "queue_full",
            "rate_limit_error",
        )
        assert 1 <= int(headers["retry-after"]) <= 60
        assert _ask(endless, "/readyz")[0] == 200
    _wait_until_free(endless)


def test_a_client_that_leaves_frees_the_slot(endless: ServerProcess) -> None:
    before = endless.log.count("outcome=client_gone")
    for _ in range(3):
        _open_stream(endless).close()
        _wait_until_free(endless)
    assert endless.log.count("outcome=client_gone") == before + 3


def test_a_client_that_leaves_before_any_answer_frees_the_slot(endless: ServerProcess) -> None:
    data = json.dumps(_LOOP | {"max_tokens": 60000}).encode()
    with socket.create_connection(("127.0.0.1", endless.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        time.sleep(0.2)
    _wait_until_free(endless)


def _wait_until_free(server: ServerProcess) -> None:
    deadline = time.monotonic() + 5
    while not _answers_now(server):
        assert time.monotonic() < deadline, server.log
        time.sleep(0.02)


def _answers_now(server: ServerProcess) -> bool:
    status, document, _ = _ask(server, _COMPLETION, _GO)
    assert status in {200, 429}, document
    return status == 200


def test_waiting_requests_are_served_in_turn(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    with running_server(
        llama_host, tmp_path, scripted_model, _ENDLESS | {"server.limits.queue": 2}
    ) as server:
        results: list[int] = []
        with _open_stream(server) as first:
            threads = [
                threading.Thread(target=lambda: results.append(_ask(server, _COMPLETION, _GO)[0]))
                for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            # Long enough for both to have taken their places; a request that looked would take one itself.
            time.sleep(1)
            assert _ask(server, _COMPLETION, _GO)[0] == 429
            assert results == []
            first.close()
            for thread in threads:
                thread.join(10)
        assert results == [200, 200]


def test_the_deadline_ends_a_request(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    limits = _ENDLESS | {"server.limits.request_s": 1}
    with running_server(llama_host, tmp_path, scripted_model, limits) as server:
        status, document, headers = _ask(server, _COMPLETION, _LOOP | {"max_tokens": 60000})
        assert (status, document["error"]["code"]) == (504, "deadline_exceeded")
        assert headers["x-should-retry"] == "false"
        with _open_stream(server) as stream:
            text = b""
            while part := stream.recv(65536):
                text += part
                if b"[DONE]" in text:
                    break
        assert b'"code": "deadline_exceeded"' in text
        assert _answers(server)


def test_a_reader_that_does_not_read_is_dropped(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    limits = _ENDLESS | {"server.limits.request_s": 3}
    with running_server(llama_host, tmp_path, scripted_model, limits) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            data = json.dumps(_LOOP | {"prompt": "flood", "stream": True, "max_tokens": 60000}).encode()
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
            )
            server.wait_for("outcome=slow_reader")
        assert _answers(server)


def test_a_slow_reader_does_not_slow_the_others(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    overrides = _ENDLESS | {"engine.slots": 2}
    with running_server(llama_host, tmp_path, scripted_model, overrides) as server, _open_stream(server):
        for _ in range(20):
            assert _answers(server)


def test_pipelined_and_kept_alive_requests(scripted_server: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", scripted_server.port, timeout=10)
    for _ in range(3):
        connection.request("POST", _COMPLETION, json.dumps(_GO), _JSON)
        response = connection.getresponse()
        assert response.status == 200
        response.read()
    connection.close()
    with socket.create_connection(("127.0.0.1", scripted_server.port), timeout=10) as raw:
        raw.sendall(
            b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 2
            + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        text = b""
        while part := raw.recv(65536):
            text += part
    assert text.count(b"HTTP/1.1 200 OK") == 3


def test_the_log_holds_no_prompt_and_no_answer(scripted_server: ServerProcess) -> None:
    secret = "Tr0ub4dor"
    body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": secret}], "temperature": 0}
    assert _ask(scripted_server, _CHAT, body)[0] == 200
    assert _ask(scripted_server, _CHAT, body | {"stop": [secret] * 99})[0] == 400
    assert secret not in scripted_server.log
    assert "I am fine" not in scripted_server.log

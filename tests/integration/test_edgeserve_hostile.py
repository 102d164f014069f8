"""A real edgeserve process and clients that mean it ill: slow, greedy, cut short, endless, many, and none that speak HTTP."""

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.asking import COMPLETION, LOOP, answers, ask
from tests.support.certificates import Authority, client_context
from tests.support.llama import ServerProcess, running_server

_TIMES = {"header_s": 1, "body_s": 2, "idle_s": 1, "unread_s": 2}
_BOUNDS = {"connections": 40, "connections_per_address": 30}
_SETTINGS: dict[str, Any] = {f"server.limits.{name}": value for name, value in (_TIMES | _BOUNDS).items()} | {
    "engine.context_tokens": 2048,
    "server.limits.output_tokens": 2000,
    "engine.slots": 2,
}
_LONG = dict(LOOP) | {"max_tokens": 2000}
_FLOOD = dict(LOOP) | {"prompt": "flood", "max_tokens": 2000}
# How much later than its bound something may happen on a busy machine.
_LATE_S = 8.0


def _open_files(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server, and how to speak to it."""

    server: ServerProcess
    context: ssl.SSLContext | None
    files_at_rest: int

    def open(self, *, raw: bool = False, address: str = "127.0.0.1", buffer_bytes: int = 0) -> socket.socket:
        """Connect from an address, with TLS if the server has it and `raw` does not say otherwise."""
        connection = socket.socket()
        if buffer_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        connection.settimeout(20)
        connection.bind((address, 0))
        connection.connect(("127.0.0.1", self.server.port))
        if self.context is None or raw:
            return connection
        return self.context.wrap_socket(connection, server_hostname="localhost")

    def answers(self) -> bool:
        return answers(self.server, context=self.context)


@pytest.fixture(scope="module", params=["plain", pytest.param("tls", marks=pytest.mark.slow)])
def target(
    request: pytest.FixtureRequest,
    llama_host: Path,
    scripted_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("hostile")
    settings, context = dict(_SETTINGS), None
    if request.param == "tls":
        authority, mounted = Authority(), folder / "tls"
        mounted.mkdir()
        authority.issue("device", is_server=True).write(mounted)
        settings["server.access.tls_folder"] = str(mounted)
        context = client_context(authority, folder)
    with running_server(llama_host, folder, scripted_model, settings) as server:
        files = _open_files(server)
        # Memory is taken as it is first used: the cache by long answers, the heap by what waits for a slow reader and by as many
        # connections as there may be.
        with ThreadPoolExecutor(2) as pool:
            for answer in pool.map(
                lambda body: ask(server, COMPLETION, body, context=context), [_LONG, _FLOOD]
            ):
                assert answer.status == 200
        _wave(server, 1000)
        made = Target(server=server, context=context, files_at_rest=files)
        _wait_at_rest(made)
        yield made


@pytest.fixture(autouse=True)
def _survives(request: pytest.FixtureRequest, target: Target) -> Iterator[None]:
    """After each test the server still answers, and memory and open files are as before."""
    assert target.answers()
    before = target.server.resident_bytes
    yield
    _wait_at_rest(target)
    assert " error " not in target.server.log
    # The heap keeps what the most connections at once took; over many waves of 3,000 it levels out.
    spare_bytes = (8 if request.function is test_thousands_of_connections else 2) << 20
    assert target.server.resident_bytes < before * 1.05 + spare_bytes


def _wait_at_rest(target: Target) -> None:
    """Wait until every connection of before is gone, those too that still wait to be accepted."""
    deadline = time.monotonic() + _LATE_S
    while not _is_at_rest(target):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_at_rest(target: Target) -> bool:
    # A server that turns connections away may reset this one, too.
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
        return target.answers() and _open_files(target.server) <= target.files_at_rest
    return False


def _read_all(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while part := connection.recv(65536):
            data += part
    return data


def _read_alive(connection: socket.socket) -> None:
    """Read one answer of /livez."""
    data = b""
    while b"alive" not in data:
        part = connection.recv(65536)
        assert part, data
        data += part


def _drip(connection: socket.socket, data: bytes, pause_s: float) -> None:
    with contextlib.suppress(OSError):
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(pause_s)


def _code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


def _request(body: bytes, length: int | None = None) -> bytes:
    head = f"POST {COMPLETION} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def test_a_header_that_trickles_in_is_cut_off(target: Target) -> None:
    with target.open() as connection:
        started = time.monotonic()
        _drip(connection, b"GET /livez HTTP/1.1\r\nX: " + b"x" * 100, 0.1)
        answer = _read_all(connection)
        assert time.monotonic() - started < 1 + _LATE_S + 2
    # What came after the end resets the connection, and the answer with it, now and then.
    assert not answer or (answer.startswith(b"HTTP/1.1 408 ") and _code(answer) == "header_timeout")


def test_half_a_header_is_told_so(target: Target) -> None:
    with target.open() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert _code(answer) == "header_timeout"


@pytest.mark.parametrize("requests", [0, 1])
def test_silence_is_cut_off(target: Target, requests: int) -> None:
    with target.open() as connection:
        for _ in range(requests):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            _read_alive(connection)
        started = time.monotonic()
        assert _read_all(connection) == b""
        assert 0.5 < time.monotonic() - started < 1 + _LATE_S


def test_a_second_request_may_not_trickle_either(target: Target) -> None:
    with target.open() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /li")
        _read_alive(connection)
        started = time.monotonic()
        _drip(connection, b"vez HTTP/1.1\r\nX: " + b"x" * 60, 0.1)
        assert b"alive" not in _read_all(connection)
        assert time.monotonic() - started < 1 + _LATE_S + 2


def test_a_body_that_trickles_in_is_refused(target: Target) -> None:
    with target.open() as connection:
        connection.sendall(_request(b"{", 5000))
        _drip(connection, b" " * 30, 0.1)
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert _code(answer) == "body_timeout"


def test_bodies_cut_short(target: Target) -> None:
    before = target.server.log.count("outcome=client_gone")
    for _ in range(10):
        with target.open() as connection:
            connection.sendall(_request(b'{"model": ', 5000))
    deadline = time.monotonic() + _LATE_S
    while target.server.log.count("outcome=client_gone") < before + 10:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_endless_bodies(target: Target) -> None:
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    head = f"POST {COMPLETION} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = 0
    with target.open() as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):
            while sent < 1 << 30:
                connection.sendall(chunk)
                sent += len(chunk)
    assert sent < 1 << 27


def test_an_endless_header(target: Target) -> None:
    with target.open() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000)
        answer = _read_all(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")


def test_what_is_no_http_is_told_so(target: Target) -> None:
    with target.open() as connection:
        connection.sendall(b"EHLO mail.example\r\n\r\n")
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert _code(answer) == "invalid_http"


def test_who_does_not_read_is_cut_off(target: Target) -> None:
    before = target.server.log.count("outcome=client_gone")
    with target.open(buffer_bytes=4096) as connection:
        connection.sendall(_request(json.dumps(_FLOOD | {"stream": True}).encode()))
        deadline = time.monotonic() + 2 + _LATE_S
        while target.server.log.count("outcome=client_gone") == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_who_reads_a_little_is_cut_off_too(target: Target) -> None:
    before = target.server.log.count("outcome=client_gone")
    with target.open(buffer_bytes=4096) as connection:
        connection.sendall(_request(json.dumps(_FLOOD | {"stream": True}).encode()))
        deadline = time.monotonic() + 2 + _LATE_S
        with contextlib.suppress(OSError):
            while target.server.log.count("outcome=client_gone") == before:
                assert time.monotonic() < deadline
                connection.recv(1)
                time.sleep(0.05)


def _wave(server: ServerProcess, count: int) -> int:
    """Open connections by the hundred without saying a word, and leave.

    Returns:
        The most open files that the server was seen with.
    """
    most = 0
    connections: list[socket.socket] = []
    try:
        for number in range(count):
            connection = socket.socket()
            connection.settimeout(30)
            connection.connect(("127.0.0.1", server.port))
            connections.append(connection)
            if number % 200 == 199:
                most = max(most, _open_files(server))
                for old in connections[: len(connections) // 2]:
                    old.close()
                del connections[: len(connections) // 2]
    finally:
        for connection in connections:
            connection.close()
    return most


@pytest.mark.slow
def test_thousands_of_connections(target: Target) -> None:
    started = time.monotonic()
    most = _wave(target.server, 3000)
    assert time.monotonic() - started < 60
    # Those that are being turned away have a file each for a moment; the server reserves so many (http/server.py, _OTHER_FILES).
    assert most - target.files_at_rest <= 30 + 4 * 128 + 64
    target.server.wait_for('warning refused reason="too many connections from one address" address=127.0.0.1')


def _refused(target: Target, connection: socket.socket) -> bool:
    """Whether the server turned this connection away."""
    answer = _read_all(connection)
    if target.context is None and answer:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        assert _code(answer) == "too_many_connections"
    return not answer or target.context is None


def test_one_address_does_not_take_all_places(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(target.open(raw=True, address="127.0.0.2"))
        started = time.monotonic()
        assert _refused(target, stack.enter_context(target.open(raw=True, address="127.0.0.2")))
        assert time.monotonic() - started < 0.9
        assert target.answers()


def test_all_addresses_together_are_bounded(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(40):
            stack.enter_context(target.open(raw=True, address=f"127.0.0.{3 + number % 4}"))
        started = time.monotonic()
        assert _refused(target, stack.enter_context(target.open(raw=True, address="127.0.0.9")))
        assert time.monotonic() - started < 0.9
    target.server.wait_for('warning refused reason="too many connections" address=127.0.0.9')


def test_a_busy_connection_is_not_cut_off(target: Target) -> None:
    """An answer that is read may take longer than a header, a body, or silence: here for 2.5 s, and it is longer still."""
    parts = []
    with target.open(buffer_bytes=65536) as connection:
        connection.sendall(_request(json.dumps(_FLOOD | {"stream": True}).encode()))
        started = time.monotonic()
        while time.monotonic() < started + 2.5:
            parts.append(connection.recv(65536))
            assert parts[-1]
            time.sleep(0.02)
    answer = b"".join(parts)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"data: ") > 10
    assert b"[DONE]" not in answer


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("target", ["tls"], indirect=True)
@pytest.mark.parametrize("length", [0, 100, 100_000])
def test_handshakes_that_stall(target: Target, length: int) -> None:
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(target.open(raw=True, address="127.0.0.2")) for _ in range(25)]
        for connection in stalled:
            connection.sendall(_client_hello()[:length])
        started = time.monotonic()
        assert target.answers()
        for connection in stalled:
            _read_all(connection)
        assert time.monotonic() - started < 1 + _LATE_S
    target.server.wait_for('warning refused reason="handshake too slow"')


@pytest.mark.parametrize("target", ["tls"], indirect=True)
def test_what_is_no_tls(target: Target) -> None:
    for data in (
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 5000,
        b"\x16\x03\x01\xff\xff" + b"x" * 70000,
        b"\x15\x03\x03\x00\x02\x02\x28",
        _client_hello()[:-20] + b"x" * 20,
    ):
        with target.open(raw=True) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            assert b"alive" not in _read_all(connection)
        assert target.answers()
    target.server.wait_for("warning refused reason=HTTP_REQUEST")


@pytest.mark.parametrize("target", ["tls"], indirect=True)
def test_connections_cut_without_close_notify(target: Target) -> None:
    for _ in range(20):
        connection = target.open()
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        raw = socket.socket(fileno=connection.detach())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        raw.close()


@pytest.mark.parametrize("target", ["tls"], indirect=True)
def test_sessions_that_openssl_keeps_are_dropped(target: Target) -> None:
    """TLS 1.2 without tickets makes the server remember each session, thousands of them."""
    assert target.context is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    for _ in range(300):
        with context.wrap_socket(target.open(raw=True)) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"alive" in _read_all(connection)
    target.server.wait_for("tls-reloaded reason=worn", 10)

"""gRPC and clients that mean it ill, on the wire: silent, slow, cut short, endless, and many."""

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.asking import answers
from tests.support.grpc_client import SERVICE, client
from tests.support.llama import GRPC, ServerProcess, running_server
from tests.support.scraping import values

_SETTINGS = {
    **GRPC,
    "server.limits.header_s": 1,
    "server.limits.body_s": 2,
    "server.limits.connections": 300,
    "server.limits.connections_per_address": 200,
}
_LATE_S = 10.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS_FRAME, _HEADERS_FRAME, _DATA_FRAME, _END_HEADERS = 4, 1, 0, 4


@pytest.fixture(scope="module")
def server(
    llama_host: Path, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("hostile-grpc")
    with running_server(llama_host, folder, scripted_model, _SETTINGS) as made:
        # Memory is taken as it is first used.
        _flood(made, 300)
        _wait_until_well(made)
        yield made


@pytest.fixture
def untold(llama_host: Path, scripted_model: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """One that has refused nobody yet: refusals of a kind that come soon after each other are one line."""
    with running_server(llama_host, tmp_path, scripted_model, _SETTINGS) as made:
        yield made


@pytest.fixture(autouse=True)
def _survives(server: ServerProcess) -> Iterator[None]:
    """After each test both interfaces answer, no slot is taken, and memory is as before."""
    before = server.resident_bytes
    yield
    _wait_until_well(server)
    assert values(server)["edgeserve_slots_busy"] == 0
    assert server.resident_bytes < before * 1.05 + (4 << 20)
    assert " error " not in server.log


def _wait_until_well(server: ServerProcess) -> None:
    """Wait until connections that are over are counted off, and one more is taken."""
    deadline = time.monotonic() + _LATE_S
    while not _answers_now(server):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_well(server: ServerProcess) -> bool:
    with client(server.grpc_target) as opened:
        text, _ = opened.answer(prompt="go", temperature=0.0, max_tokens=2)
    return text == "Hello wor" and answers(server)


def _connect(server: ServerProcess, *, address: str = "127.0.0.1") -> socket.socket:
    host, _, port = server.grpc_target.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=_LATE_S, source_address=(address, 0))


def _frame(kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    """Write a frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _call(method: str) -> bytes:
    """Open a connection and a call as far as its headers, none of them indexed (RFC 7541, 6.2.2)."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SERVICE}/{method}",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    return (
        _PREFACE + _frame(_SETTINGS_FRAME, b"") + _frame(_HEADERS_FRAME, block, flags=_END_HEADERS, stream=1)
    )


def _closed_after_s(connection: socket.socket) -> float:
    """Read until the server closes; return how long that took."""
    begin = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return time.monotonic() - begin


def _drip(connection: socket.socket, data: bytes) -> None:
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(0.2)


@pytest.mark.parametrize("said", [b"", _PREFACE[:10], b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00"])
def test_who_says_nothing_or_nonsense_is_cut_off(server: ServerProcess, said: bytes) -> None:
    with _connect(server) as connection:
        connection.sendall(said)
        assert _closed_after_s(connection) < 1 + _LATE_S


def test_a_preface_that_trickles_in_is_cut_off(server: ServerProcess) -> None:
    begin = time.monotonic()
    trickle = _PREFACE + _frame(_SETTINGS_FRAME, b"") + b"x" * 10
    # The byte after the end resets the connection, and the one after that fails.
    with _connect(server) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        _drip(connection, trickle)
    assert 1 < time.monotonic() - begin < 0.2 * len(trickle) + _LATE_S


@pytest.mark.parametrize("declared", [100, 2**32 - 1])
def test_messages_cut_short(server: ServerProcess, declared: int) -> None:
    for _ in range(20):
        with _connect(server) as connection:
            message = b"\x00" + declared.to_bytes(4, "big") + b"\x1a\x05"
            connection.sendall(_call("Generate") + _frame(_DATA_FRAME, message, stream=1))


@pytest.mark.parametrize("declared", [60_000, 2**32 - 1])
def test_an_endless_message(server: ServerProcess, declared: int) -> None:
    sent = 0
    chunk = _frame(_DATA_FRAME, b"\x00" * 16384, stream=1)
    with _connect(server) as connection:
        connection.sendall(_call("Generate"))
        connection.sendall(_frame(_DATA_FRAME, b"\x00" + declared.to_bytes(4, "big"), stream=1))
        with contextlib.suppress(OSError):
            # What comes after the end of a call is thrown away as long as the connection is open.
            while sent < 1 << 26:
                connection.sendall(chunk)
                sent += len(chunk)


def test_messages_that_never_come(server: ServerProcess) -> None:
    """More calls than may run at once begin and stay; places come back when their time is up."""
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(_connect(server)) for _ in range(120)]
        for connection in waiting:
            connection.sendall(_call("Generate") + _frame(_DATA_FRAME, b"\x00\x00", stream=1))
        begin = time.monotonic()
        while not _answers_now(server):
            assert time.monotonic() - begin < 2 + _LATE_S
            time.sleep(0.1)
        # Before all have begun, the server may answer at once; no connection is closed before it gives up on one.
        server.wait_for(f"path=/{SERVICE}/Generate .*outcome=body_timeout")


def _answers_now(server: ServerProcess) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return _is_well(server)
    return False


def test_watchers_leave_room_for_calls(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(client(server.grpc_target)) for _ in range(2)]
        watches = [one.watch() for one in opened for _ in range(40)]
        outcomes = [_first(watch) for watch in watches]
        assert outcomes.count("busy") == len(watches) - 32
        assert _is_well(server)


def _first(watch: Iterator[int]) -> str:
    try:
        return str(next(watch))
    except grpc.RpcError as error:
        failed: Any = error
        return str(dict(failed.trailing_metadata())["edge-error-code"])


def _flood(server: ServerProcess, count: int) -> int:
    """Open connections without a word; return the most open files that the server was seen with meanwhile."""
    most = 0
    with contextlib.ExitStack() as stack:
        for number in range(count):
            with contextlib.suppress(OSError):
                stack.enter_context(_connect(server))
            if number % 100 == 99:
                most = max(most, len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())))
        assert answers(server)
    return most


def test_more_connections_than_there_may_be(server: ServerProcess) -> None:
    rest = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 900
    # Beside those that there may be, each that is being turned away has a file for a moment.
    assert _flood(server, 1000) < rest + 500


def test_one_address_does_not_keep_all_places(untold: ServerProcess) -> None:
    """All places are taken by connections that stay; soon those beyond a share are ended, and others get in."""
    opening = _PREFACE + _frame(_SETTINGS_FRAME, b"")
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(_connect(untold, address="127.0.0.2")) for _ in range(300)]
        for connection in taken:
            connection.sendall(opening)
        # By another address: the official client, as in all tests here.
        _wait_until_well(untold)
        open_still = [not _is_closed(connection) for connection in taken]
        assert sum(open_still) == 200
        # Who was there before stays.
        assert all(open_still[:200])
        assert _is_well(untold)
    untold.wait_for('warning refused reason="too many gRPC connections from one address" address=127.0.0.2')


def _is_closed(connection: socket.socket) -> bool:
    """Read what has come; whether the server has ended it."""
    connection.settimeout(0.01)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True

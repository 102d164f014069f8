"""Certificates change, and the server stops, while clients are at it: nobody loses a request."""

import http.client
import json
import signal
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography import x509

from tests.support.asking import COMPLETION, GO, LOOP, ask, ask_on, connect
from tests.support.certificates import Authority, Issued, client_context
from tests.support.llama import ServerProcess, running_server

_KEPT = 3


def _serial(issued: Issued) -> int:
    return x509.load_pem_x509_certificate(issued.certificate).serial_number


def _shown_serial(server: ServerProcess, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection is shown."""
    connection = connect(server, context)
    connection.connect()
    assert isinstance(connection.sock, ssl.SSLSocket)
    certificate = connection.sock.getpeercert()
    connection.close()
    assert certificate is not None
    return int(str(certificate["serialNumber"]), 16)


class _Load:
    """Clients that ask until told to stop; some keep their connections, some open one for each request."""

    def __init__(self, server: ServerProcess, context: ssl.SSLContext) -> None:
        self.faults: list[str] = []
        self.answered = 0
        self.closed = 0
        self._server = server
        self._context = context
        self._is_over = threading.Event()
        works: list[Callable[[], None]] = [self._keep] * _KEPT + [self._open_anew]
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.faults.append(repr(error))

    def _keep(self) -> None:
        connection = connect(self._server, self._context)
        while not self._is_over.is_set():
            answer = ask_on(connection, COMPLETION, GO)
            assert answer.status == 200, answer
            self.answered += 1
            if answer.headers.get("connection") == "close":
                self.closed += 1
                connection.close()
        connection.close()

    def _open_anew(self) -> None:
        while not self._is_over.is_set():
            answer = ask(self._server, COMPLETION, GO, context=self._context)
            assert answer.status == 200, answer
            self.answered += 1

    def wait_for_more(self, count: int = 5) -> None:
        """Wait until some more requests were answered."""
        wanted, deadline = self.answered + count, time.monotonic() + 60
        while self.answered < wanted and not self.faults:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def _files(folder: Path, authority: Authority) -> Path:
    mounted = folder / "tls"
    mounted.mkdir()
    authority.issue("device", is_server=True).write(mounted)
    (mounted / "ca.crt").write_bytes(authority.certificate)
    return mounted


def test_certificates_change_under_load(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    authority = Authority()
    mounted = _files(tmp_path, authority)
    context = client_context(authority, tmp_path, authority.issue("robot"))
    settings = {"server.access.tls_folder": str(mounted)}
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        load = _Load(server, context)
        try:
            new = authority.issue("device", is_server=True)
            for count in range(1, 9):
                load.wait_for_more()
                new = authority.issue("device", is_server=True)
                new.write(mounted)
                server.process.send_signal(signal.SIGHUP)
                _wait_for_count(server, "tls-reloaded", count)
                assert _shown_serial(server, context) == _serial(new)
            assert load.closed == 0
            # Half written, as a copy that was cut off: the old one stays, and one line says so.
            (mounted / "tls.crt").write_bytes(new.certificate[:200])
            server.wait_for("error tls-not-reloaded problem=.*tls.crt", 10)
            load.wait_for_more()
            assert _shown_serial(server, context) == _serial(new)
            newest = authority.issue("device", is_server=True)
            newest.write(mounted)
            _wait_for_serial(server, context, newest)
            load.wait_for_more()
            assert server.log.count("tls-not-reloaded") <= 2
        finally:
            load.stop()
        assert load.faults == []
        assert "outcome=internal" not in server.log
        assert server.terminate() == 0


def test_a_changed_authority_ends_old_connections_in_turn(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    authority, other = Authority(), Authority("Another CA")
    mounted = _files(tmp_path, authority)
    context = client_context(authority, tmp_path, authority.issue("robot"))
    foreign = client_context(authority, tmp_path, other.issue("newcomer"))
    settings = {"server.access.tls_folder": str(mounted)}
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        load = _Load(server, context)
        try:
            load.wait_for_more()
            (mounted / "ca.crt").write_bytes(authority.certificate + other.certificate)
            server.wait_for("tls-reloaded reason=changed", 10)
            assert ask(server, COMPLETION, GO, context=foreign).status == 200
            load.wait_for_more(20)
        finally:
            load.stop()
        assert load.faults == []
        assert "outcome=internal" not in server.log
        assert load.closed == _KEPT
        server.wait_for("client=cert:newcomer status=200")


def _wait_for_count(server: ServerProcess, event: str, count: int) -> None:
    deadline = time.monotonic() + 10
    while server.log.count(event) < count:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.01)


def _wait_for_serial(server: ServerProcess, context: ssl.SSLContext, issued: Issued) -> None:
    deadline = time.monotonic() + 10
    while _shown_serial(server, context) != _serial(issued):
        assert time.monotonic() < deadline, server.log
        time.sleep(0.1)


def test_stopping_under_load_with_tls(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    authority = Authority()
    mounted = _files(tmp_path, authority)
    context = client_context(authority, tmp_path, authority.issue("robot"))
    settings = {
        "server.access.tls_folder": str(mounted),
        "server.drain_s": 60,
        "server.limits.output_tokens": 1000,
        "engine.context_tokens": 2048,
    }
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        idle = [connect(server, context) for _ in range(5)]
        for connection in idle:
            assert ask_on(connection, "/livez").status == 200
        with ThreadPoolExecutor(4) as pool:
            texts = [pool.submit(_stream, server, context) for _ in range(4)]
            server.wait_for("queued_s")
            server.process.send_signal(signal.SIGTERM)
            for text in texts:
                assert text.result(60).endswith(b"data: [DONE]\n\n")
        started = time.monotonic()
        # Neither clients that keep quiet nor those that never answer a close_notify hold it up.
        assert server.wait() == 0
        assert time.monotonic() - started < 5
        assert server.log.count("outcome=length") == 4
        assert " error " not in server.log
        for connection in idle:
            connection.close()


def _stream(server: ServerProcess, context: ssl.SSLContext) -> bytes:
    connection = connect(server, context)
    body = dict(LOOP) | {"stream": True, "max_tokens": 1000}
    connection.request("POST", COMPLETION, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    text = response.read()
    connection.close()
    return text

"""The registry's HTTP side: routes, faults, logins and the record of what was asked."""

import http.server
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tests.support.faulty_registry.auth import Login
from tests.support.faulty_registry.faults import (
    Answer,
    Corrupt,
    CutRequest,
    CutResponse,
    Effect,
    Hang,
    Inflate,
    Injection,
    WrongDigest,
)
from tests.support.faulty_registry.routes import CHUNK_BYTES, Request, Response, Site, refusal
from tests.support.faulty_registry.store import RefusedError, Store

_SETTLE_S = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One request, noted when it was over.

    Attributes:
        headers: With names in lower case.
        received_bytes: Of the request's body.
        sent_bytes: Of the response's body.
        status: 0 when the connection ended without an answer.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    received_bytes: int
    sent_bytes: int
    status: int


class _CutError(Exception):
    """The connection is to end here."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class FaultyRegistry:
    """A registry on a free port of 127.0.0.1, while its `with` block lasts.

    Args:
        folder: Where it keeps blobs; the caller's to remove.
        login: Ask for a login on everything below /v2/.
        has_referrers_api: Answer the referrers API, and `OCI-Subject` to a manifest with a subject.
        takes_chunks: Take PATCH; otherwise it answers 405 and blobs come by one POST and PUT alone.
        mounts: Mount blobs of other repositories; otherwise such a POST opens an upload.
        gives_parts: Heed Range; otherwise all of a blob comes always.

    Attributes:
        store: Its content, to fill and to look at.
    """

    def __init__(
        self,
        folder: Path,
        *,
        login: Login | None = None,
        has_referrers_api: bool = False,
        takes_chunks: bool = True,
        mounts: bool = True,
        gives_parts: bool = True,
    ) -> None:
        self.store = Store(folder)
        self.site = Site(
            store=self.store,
            login=login,
            has_referrers_api=has_referrers_api,
            takes_chunks=takes_chunks,
            mounts=mounts,
            gives_parts=gives_parts,
        )
        self.stopping = threading.Event()
        self.errors: list[Exception] = []
        self._injections: list[Injection] = []
        self._recorded: list[Recorded | None] = []  # None while the request is under way
        self._changed = threading.Condition()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        """On 127.0.0.1."""
        return self._server.server_port

    @property
    def host(self) -> str:
        """Host and port, as in an image reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Root of the API, without the trailing slash."""
        return f"http://{self.host}"

    @property
    def requests(self) -> tuple[Recorded, ...]:
        """Every request that is over, in the order in which they came.

        Waits a moment for those whose answer is on its way, so that a client may look at once after its last one.
        """
        with self._changed:
            self._changed.wait_for(lambda: None not in self._recorded, _SETTLE_S)
            return tuple(request for request in self._recorded if request is not None)

    def reference(self, repository: str, tag: str = "latest") -> str:
        """Name an image in this registry."""
        return f"{self.host}/{repository}:{tag}"

    def inject(
        self, effect: Effect, *, method: str = "", path: str = "", skip: int = 0, times: int | None = 1
    ) -> Injection:
        """Let something go wrong.

        Args:
            method: On requests with this method; "" is any.
            path: On requests whose path with query matches this regular expression somewhere.
            skip: Let so many such requests pass first.
            times: Then meet so many of them; None is all.
        """
        injection = Injection(effect, method=method, path=path, skip=skip, times=times)
        self._injections.append(injection)
        return injection

    def effect_on(self, method: str, path: str) -> Effect | None:
        """Return what shall go wrong with a request, by the first fault that it meets."""
        return next((one.effect for one in self._injections if one.strikes(method, path)), None)

    def begin(self) -> int:
        """Note that a request has come; return its number."""
        with self._changed:
            self._recorded.append(None)
            return len(self._recorded) - 1

    def record(self, number: int, request: Recorded) -> None:
        """Note that a request is over."""
        with self._changed:
            self._recorded[number] = request
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()
        if error is None and self.errors:
            raise self.errors[0]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for the threads, whose connections end_connections ended
    request_queue_size = 64

    def __init__(self, registry: FaultyRegistry) -> None:
        self.registry = registry
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for connection in tuple(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was quicker

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        raise AssertionError("the handler keeps its errors to itself")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # What is no HTTP, a TLS handshake above all, is answered in HTTP: by that containerd knows that it may go on without TLS.
    default_request_version = "HTTP/1.0"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name of the base class)
        """Say nothing: everything is recorded."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815  (the names of the base class)

    def _serve(self) -> None:
        """Serve one request: (1) read or meet a fault, (2) check the login, (3) do it, (4) answer, (5) record it."""
        self._received = self._sent = self._status = 0
        url = urlsplit(self.path)
        self._route_path, self._query = unquote(url.path), url.query
        self._unread = self._body()
        registry = self.server.registry
        number = registry.begin()
        effect = registry.effect_on(self.command, self.path)
        try:
            self._send(self._answer(effect), effect)
        except _CutError as cut:
            self.close_connection = True
            if cut.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.rfile.close()  # it holds the connection open
                self.connection.close()
        except ConnectionError:
            self.close_connection = True
        except Exception as error:  # noqa: BLE001  (told at the end of the test)
            registry.errors.append(error)
            self.close_connection = True
        finally:
            registry.record(
                number,
                Recorded(
                    method=self.command,
                    path=self._route_path,
                    query=self._query,
                    headers={name.lower(): value for name, value in self.headers.items()},
                    received_bytes=self._received,
                    sent_bytes=self._sent,
                    status=self._status,
                ),
            )

    def _answer(self, effect: Effect | None) -> Response:
        match effect:
            case Hang(seconds=seconds):
                self.server.registry.stopping.wait(seconds)
                raise _CutError
            case CutRequest(after_bytes=after_bytes, reset=reset):
                self._unread = self._broken(self._unread, after_bytes, reset=reset)
            case Answer():
                self._drain()
                return Response(status=effect.status, headers=dict(effect.headers), body=effect.body)
            case _:
                pass
        try:
            response = self.server.registry.site.answer(
                Request(
                    method=self.command,
                    path=self._route_path,
                    query=self._query,
                    host=self.server.registry.host,
                    headers=self.headers,  # names compare without case
                    body=self._unread,
                )
            )
        except RefusedError as error:
            response = refusal(error)
        self._drain()
        return response

    @staticmethod
    def _broken(body: Iterator[bytes], after_bytes: int, *, reset: bool) -> Iterator[bytes]:
        left = after_bytes
        for chunk in body:
            if len(chunk) >= left:
                yield chunk[:left]
                break
            left -= len(chunk)
            yield chunk
        raise _CutError(reset=reset)

    def _body(self) -> Iterator[bytes]:
        """Yield the request's body in small pieces and count them."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield from self._pieces(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self._pieces(int(self.headers.get("Content-Length", 0)))

    def _pieces(self, size_bytes: int) -> Iterator[bytes]:
        left = size_bytes
        while left:
            piece = self.rfile.read1(min(left, CHUNK_BYTES))
            if not piece:
                raise ConnectionError("the client ended within its body")
            left -= len(piece)
            self._received += len(piece)
            yield piece

    def _drain(self) -> None:
        for _ in self._unread:
            pass

    def _send(self, response: Response, effect: Effect | None) -> None:
        if isinstance(effect, WrongDigest):
            response.headers["Docker-Content-Digest"] = effect.digest
        size_bytes = response.size_bytes
        chunks = response.chunks()
        announced = True
        if isinstance(effect, Inflate):
            chunks = _padded(chunks, size_bytes, effect.size_bytes)
            size_bytes, announced = effect.size_bytes, effect.announced
        if isinstance(effect, Corrupt):
            chunks = _corrupted(chunks)
        self._status = response.status
        self._send_header(response, size_bytes if announced else None)
        if self.command != "HEAD":
            self._send_body(chunks, effect, announced=announced)

    def _send_header(self, response: Response, size_bytes: int | None) -> None:
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if size_bytes is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(size_bytes))
        self.end_headers()

    def _send_body(self, chunks: Iterator[bytes], effect: Effect | None, *, announced: bool) -> None:
        if isinstance(effect, CutResponse):
            left = effect.after_bytes
            for chunk in chunks:
                self._write(chunk[:left], announced=announced)
                left -= len(chunk[:left])
                if left == 0:
                    break
            self.wfile.flush()
            raise _CutError(reset=effect.reset)
        for chunk in chunks:
            self._write(chunk, announced=announced)
        if not announced:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, part: bytes, *, announced: bool) -> None:
        if part:
            self.wfile.write(part if announced else b"%x\r\n%s\r\n" % (len(part), part))
            self._sent += len(part)


def _padded(chunks: Iterator[bytes], size_bytes: int, wanted_bytes: int) -> Iterator[bytes]:
    yield from chunks
    left = wanted_bytes - size_bytes
    while left > 0:
        yield b" " * min(left, CHUNK_BYTES)
        left -= CHUNK_BYTES


def _corrupted(chunks: Iterator[bytes]) -> Iterator[bytes]:
    first = next(chunks, b"")
    yield bytes([first[0] ^ 1]) + first[1:] if first else b""
    yield from chunks

"""A loopback web server that misbehaves on demand."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What is served under one path.

    Attributes:
        body: The bytes.
        content_type: Header.
        ranges: Whether Range is honoured.
        failures: Statuses answered first, one a request.
        cuts: Number of bytes after which each of the next answers breaks off.
        refuse: A status answered always, or 0.
        redirect: Where to go instead, or "".
        headers: Sent with every answer.
        stalls: Number of bytes after which each of the next answers says nothing more until the server ends.
        silent_from: Where answers that begin there or later say nothing but their head, or -1.
        lives: Answers after which it is refused with 403, or -1.
        token: Bearer token that is asked for, or "".
        tells_length: Whether answers have a Content-Length; without it they end with the connection.
    """

    body: bytes
    content_type: str = "application/octet-stream"
    ranges: bool = True
    failures: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    refuse: int = 0
    redirect: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    stalls: list[int] = field(default_factory=list)
    silent_from: int = -1
    lives: int = -1
    token: str = ""
    tells_length: bool = True


class FileServer:
    """Serves pages and remembers what was asked.

    Attributes:
        pages: By path.
        asked: Path and Range of every request.
        authorizations: Their Authorization.
        under_way: Answers that are being sent.
        most_at_once: Answers that were under way at the same time.
        on_gone: Called when a page's lives are over.
        elsewhere: Gives the page of a path that is not in `pages`.
    """

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str]] = []
        self.authorizations: list[str] = []
        self.url = ""
        self.most_at_once = 0
        self.on_gone: Callable[[], None] = lambda: None
        self.elsewhere: Callable[[str], Page | None] = lambda _: None
        self.ended = threading.Event()
        self._guard = threading.Lock()
        self.under_way = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._guard:
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            self._answer(handler)
        except ConnectionError:
            handler.close_connection = True
        finally:
            with self._guard:
                self.under_way -= 1

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        page = self.pages.get(path) or self.elsewhere(path)
        asked = handler.headers.get("Range", "")
        with self._guard:
            self.asked.append((handler.path, asked))
            self.authorizations.append(handler.headers.get("Authorization", ""))
            status = self._refusal(page, handler.headers.get("Authorization", ""))
        if page is None or status:
            _send_head(handler, status or 404, 0, page.headers if page else {})
        elif page.redirect:
            _send_head(handler, 302, 0, {"Location": page.redirect})
        else:
            self._send_page(handler, page, asked if page.ranges else "")

    def _refusal(self, page: Page | None, authorization: str) -> int:
        if page is not None and page.token and authorization != f"Bearer {page.token}":
            return 401
        if page is None or page.refuse or page.failures:
            return 404 if page is None else page.refuse or page.failures.pop(0)
        if page.lives == 0:
            self.on_gone()
            return 403
        page.lives -= 1
        return 0

    def _send_page(self, handler: BaseHTTPRequestHandler, page: Page, asked: str) -> None:
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = int(first or 0), min(int(last) + 1 if last else len(page.body), len(page.body))
        if asked and begin >= len(page.body):
            _send_head(handler, 416, 0, {})
            return
        headers = {"Content-Type": page.content_type, **page.headers}
        if page.ranges:
            headers["Accept-Ranges"] = "bytes"
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(page.body)}"
        handler.close_connection |= not page.tells_length
        _send_head(handler, 206 if asked else 200, end - begin if page.tells_length else None, headers)
        if handler.command == "HEAD":
            return
        if 0 <= page.silent_from <= begin:
            handler.wfile.flush()
            self.ended.wait()
            return
        rest = memoryview(page.body)[begin:end]
        for ends in (page.cuts, page.stalls):
            if ends:
                handler.wfile.write(rest[: ends.pop(0)])
                handler.close_connection = True
                if ends is page.stalls:
                    self.ended.wait()
                return
        handler.wfile.write(rest)


def _send_head(
    handler: BaseHTTPRequestHandler, status: int, size_bytes: int | None, headers: Mapping[str, str]
) -> None:
    handler.send_response(status)
    length = {} if size_bytes is None else {"Content-Length": str(size_bytes)}
    for name, value in {**length, **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()


@contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.answer(self)

        def do_HEAD(self) -> None:
            server.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    listener = _Listener(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        listener.shutdown()
        thread.join()
        listener.server_close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    # Waits for no connection that a client holds open.
    block_on_close = False

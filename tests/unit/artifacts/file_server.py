"""A loopback web server that misbehaves on demand."""

import threading
from collections.abc import Iterator
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
    """

    body: bytes
    content_type: str = "application/octet-stream"
    ranges: bool = True
    failures: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    refuse: int = 0


class FileServer:
    """Serves pages and remembers what was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append((handler.path, handler.headers.get("Range", "")))
        page = self.pages.get(handler.path)
        if page is None or page.refuse or page.failures:
            status = 404 if page is None else page.refuse or page.failures.pop(0)
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = 0
        asked = handler.headers.get("Range", "")
        if asked and page.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(page.body):
                handler.send_response(416)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}")
        else:
            handler.send_response(200)
        rest = page.body[start:]
        handler.send_header("Content-Type", page.content_type)
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        if page.cuts:
            handler.wfile.write(rest[: page.cuts.pop(0)])
            handler.close_connection = True
            return
        handler.wfile.write(rest)


@contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()

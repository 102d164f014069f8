"""A Debian mirror and package index of our own on loopback, which fails when it is told to."""

import email.utils
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

_CHUNK_BYTES = 16 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to answers.

    Attributes:
        status: Answer with this code and nothing else.
        cut_after: Close the connection after so many bytes of the body.
        stall_after: Say nothing more after so many bytes, until the server is closed.
        body: Send these bytes instead, whole.
        bytes_per_s: How fast the body goes.
        times: How many answers it spoils; then all is well.
    """

    status: int = 0
    cut_after: int | None = None
    stall_after: int | None = None
    body: bytes | None = None
    bytes_per_s: int = 0
    times: int = 1_000_000


@dataclass(slots=True, kw_only=True)
class Mirror:
    """The running server.

    Attributes:
        port: Where it listens on 127.0.0.1.
        files: What it serves, by path.
        requests: Path and Range header of every request, in the order in which they came.
        faults: Faults by part of the path.
        closing: Set when it ends.
    """

    port: int
    files: Mapping[str, Path]
    pages: dict[str, bytes]
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def options(self) -> tuple[str, ...]:
        """Options that make `edgebuild image` take Debian's packages from here."""
        return (
            "--mirror",
            f"http://127.0.0.1:{self.port}/debian",
            "--mirror",
            f"http://127.0.0.1:{self.port}/security",
        )

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make pip's and uv's index this one."""
        return {"PIP_INDEX_URL": f"http://127.0.0.1:{self.port}/simple/", "PIP_CONFIG_FILE": "/dev/null"}

    def take_fault(self, path: str) -> Fault:
        """Return what happens to this request."""
        for part, fault in self.faults.items():
            if part in path and fault.times > 0:
                self.faults[part] = Fault(
                    status=fault.status, cut_after=fault.cut_after, stall_after=fault.stall_after,
                    body=fault.body, bytes_per_s=fault.bytes_per_s, times=fault.times - 1,
                )  # fmt: skip
                return fault
        return Fault()

    def asked(self, part: str) -> list[tuple[str, str]]:
        """List the requests for paths that hold `part`."""
        return [request for request in self.requests if part in request[0]]


@contextmanager
def running_mirror(lock: Path, store: Path) -> Iterator[Mirror]:
    """Serve what a lock names and a store holds: packages under /debian and /security, projects under /simple."""
    files: dict[str, Path] = {}
    projects: dict[str, dict[str, dict[str, object]]] = {}
    for entry in json.loads(lock.read_bytes())["artifacts"]:
        for item in entry["inputs"]:
            folder = store / "v1" / "download" / item["sha256"]
            if not folder.is_dir():
                continue
            if item["kind"] == "deb":
                path = f"/{'security' if item['archive'] == 'security' else 'debian'}/{item['path']}"
            else:
                path = f"/files/{item['file']}"
                projects.setdefault(item["name"], {})[item["file"]] = {
                    "filename": item["file"], "url": path, "hashes": {"sha256": item["sha256"]},
                    "size": item.get("size_bytes", 0),
                }  # fmt: skip
            files[path] = next(iter(folder.iterdir()))
    pages = {
        f"/simple/{name}/": json.dumps(
            {"meta": {"api-version": "1.1"}, "name": name, "files": list(listed.values())}
        ).encode()
        for name, listed in projects.items()
    }

    class Handler(_Handler):
        pass

    server = _Server(("127.0.0.1", 0), Handler)
    mirror = Mirror(port=server.server_address[1], files=files, pages=pages)
    Handler.mirror = mirror
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        mirror.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Waits for no connection that a client holds open.
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed close their connections; that is no news."""


class _Handler(BaseHTTPRequestHandler):
    mirror: ClassVar[Mirror]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.mirror.requests.append((self.path, wanted))
        fault = self.mirror.take_fault(self.path)
        content = self._content()
        if fault.status or content is None:
            self._answer(fault.status or 404, b"", len(b""))
            return
        body = content if fault.body is None else fault.body
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), int(last) + 1 if last else len(body)
        if start >= len(body) and start:
            self._answer(416, b"", 0)
            return
        self._send(body, start, min(end, len(body)), fault)

    def _content(self) -> bytes | None:
        path = self.path.replace("%2B", "+").replace("%2b", "+").replace("%25", "%").replace("%7E", "~")
        if path in self.mirror.pages:
            return self.mirror.pages[path]
        file = self.mirror.files.get(path)
        return None if file is None else file.read_bytes()

    def _answer(self, status: int, body: bytes, length: int, extra: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        kind = (
            "application/vnd.pypi.simple.v1+json" if "/simple/" in self.path else "application/octet-stream"
        )
        headers = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Last-Modified": email.utils.formatdate(0, usegmt=True),
        }
        for name, value in {**headers, **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send(self, body: bytes, start: int, end: int, fault: Fault) -> None:
        rest = body[start:end]
        partial = {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}
        is_part = len(rest) < len(body)
        self._answer(206 if is_part else 200, b"", len(rest), partial if is_part else None)
        sent = 0
        for limit in (fault.cut_after, fault.stall_after):
            if limit is not None:
                rest = rest[:limit]
        while sent < len(rest):
            chunk = rest[
                sent : sent + (_CHUNK_BYTES if not fault.bytes_per_s else max(1, fault.bytes_per_s // 10))
            ]
            self.wfile.write(chunk)
            sent += len(chunk)
            if fault.bytes_per_s:
                time.sleep(0.1)
        self.wfile.flush()
        if fault.stall_after is not None:
            self.mirror.closing.wait()
        if fault.stall_after is not None or fault.cut_after is not None:
            self.close_connection = True

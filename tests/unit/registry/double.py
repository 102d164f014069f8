"""A registry on the loopback, in memory, that misbehaves on demand. It speaks HTTP for real."""

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from edgebuild.oci.descriptor import MANIFEST, Descriptor
from edgebuild.oci.digest import Digest

UPLOADS = "/blobs/uploads/"
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(slots=True, kw_only=True)
class Fault:
    """What happens to the requests that match, `times` times (-1: always)."""

    method: str
    path: str
    times: int = 1
    after: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    action: Callable[["Handler"], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    method: str
    path: str
    headers: dict[str, str]
    received_bytes: int
    status: int
    port: int


@dataclass(slots=True)
class State:
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[tuple[str, str], str] = field(default_factory=dict)
    sessions: dict[str, bytearray] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    forms: list[dict[str, list[str]]] = field(default_factory=list)


class Double:
    def __init__(self, *, auth: str = "", referrers: bool = False, chunked: bool = True) -> None:
        self.auth = auth  # "", "basic", "bearer"
        self.username, self.password, self.refresh = "edge", "s3cret-pass", "refresh-me"
        self.referrers, self.chunked = referrers, chunked
        self.uses_per_token = 10**9
        self.sessions_die = True  # as in distribution 2.8, with a PATCH that broke
        self.location_host = ""
        self.faults: list[Fault] = []
        self.requests: list[Recorded] = []
        self.state = State()
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def fault(self, method: str, path: str, **values: object) -> Fault:
        fault = Fault(method=method, path=path, **values)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def count(self, method: str, path: str = "") -> int:
        return sum(1 for r in self.requests if r.method == method and re.search(path, r.path))

    def tag_names(self, repository: str = "acme/llm") -> list[str]:
        return sorted(tag for repo, tag in self.state.tags if repo == repository)

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.path, path) and fault.times != 0:
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    double: Double
    received = 0

    def log_message(self, *args: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        self.received = 0
        self.rest = int(self.headers.get("Content-Length") or 0)
        fault = self.double.take_fault(self.command, self.path)
        if fault is not None and fault.action is not None:
            self._record(0)
            fault.action(self)
            return
        if fault is not None:
            self.read_body()
            self.answer(fault.status, fault.body, fault.headers)
            return
        if not self._is_authorized():
            return
        route(self)

    def read_body(self, limit: int = -1) -> bytes:
        size = self.rest if limit < 0 else min(limit, self.rest)
        data = self.rfile.read(size)
        self.received += len(data)
        self.rest -= len(data)
        return data

    def cut(self) -> None:
        """End the connection without an answer."""
        self.close_connection = True
        self.connection.shutdown(2)

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.read_body()
        self._record(status)
        self.send_response(status)
        sent = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str, message: str = "", **headers: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.answer(status, body, {k.replace("_", "-"): v for k, v in headers.items()})

    def _record(self, status: int) -> None:
        self.double.requests.append(
            Recorded(
                method=self.command,
                path=self.path,
                headers={k.lower(): v for k, v in self.headers.items()},
                received_bytes=self.received,
                status=status,
                port=self.client_address[1],
            )
        )

    def _is_authorized(self) -> bool:
        double, sent = self.double, self.headers.get("Authorization", "")
        basic = "Basic " + base64.b64encode(f"{double.username}:{double.password}".encode()).decode()
        if urlsplit(self.path).path == "/token":
            self._token(is_known=sent == basic)
            return False
        if double.auth == "basic" and sent != basic:
            self.error(401, "UNAUTHORIZED", "who are you", WWW_Authenticate='Basic realm="tests"')
            return False
        if double.auth == "bearer":
            with double.lock:
                left = double.state.tokens.get(sent.removeprefix("Bearer "), 0)
                double.state.tokens[sent.removeprefix("Bearer ")] = left - 1
            if left <= 0:
                realm = f'Bearer realm="http://{double.host}/token",service="double, inc",scope="repository:acme/llm:pull"'
                self.error(401, "UNAUTHORIZED", "token please", WWW_Authenticate=realm)
                return False
        return True

    def _token(self, *, is_known: bool) -> None:
        double = self.double
        if self.command == "POST":
            form = parse_qs(self.read_body().decode())
            double.state.forms.append(form)
            is_known = form.get("refresh_token") == [double.refresh]
        else:
            double.state.forms.append(parse_qs(urlsplit(self.path).query))
        if not is_known:
            self.error(401, "UNAUTHORIZED", "incorrect username or password")
            return
        token = uuid.uuid4().hex
        double.state.tokens[token] = double.uses_per_token
        self.answer(200, json.dumps({"access_token": token, "expires_in": 300}).encode())


def route(h: Handler) -> None:
    url = urlsplit(h.path)
    query = {k: v[0] for k, v in parse_qs(url.query).items()}
    match = re.fullmatch(r"/v2/(.+)/(manifests|blobs|uploads|referrers|tags)/(.*)", url.path)
    if match is None:
        h.error(404, "NAME_UNKNOWN")
        return
    repo, kind, name = match.groups()
    if (kind == "blobs" and name.startswith("uploads/")) or repo.endswith("/blobs"):
        uploads(h, repo.removesuffix("/blobs"), name.removeprefix("uploads/"), query)
    elif kind == "blobs":
        blob(h, repo, name)
    elif kind == "manifests":
        manifest(h, repo, name)
    elif kind == "referrers":
        referrers(h, repo, name)
    else:
        tags = sorted(tag for r, tag in h.double.state.tags if r == repo)
        last, n = query.get("last", ""), int(query.get("n", "2"))
        page = [tag for tag in tags if tag > last][:n]
        more = (
            {"Link": f'</v2/{repo}/tags/list?n={n}&last={page[-1]}>; rel="next"'}
            if page and page[-1] != tags[-1]
            else {}
        )
        h.answer(200, json.dumps({"name": repo, "tags": page}).encode(), more)


def blob(h: Handler, repo: str, name: str) -> None:
    data = h.double.state.blobs.get((repo, name))
    if data is None:
        h.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return
    begin = re.fullmatch(r"bytes=(\d+)-", h.headers.get("Range", ""))
    if begin:
        at = int(begin[1])
        h.answer(206, data[at:], {"Content-Range": f"bytes {at}-{len(data) - 1}/{len(data)}"})
    elif h.command == "HEAD":
        h.answer(200, b"", {"Content-Length": str(len(data))})
    else:
        h.answer(200, data)


def manifest(h: Handler, repo: str, name: str) -> None:
    state = h.double.state
    if h.command == "PUT":
        raw = h.read_body()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        state.manifests[repo, digest] = (h.headers["Content-Type"], raw)
        if not name.startswith("sha256:"):
            state.tags[repo, name] = digest
        headers = {"Docker-Content-Digest": digest, "Location": f"/v2/{repo}/manifests/{digest}"}
        subject = json.loads(raw).get("subject") if raw.startswith(b"{") else None
        if subject and h.double.referrers:
            headers["OCI-Subject"] = subject["digest"]
        h.answer(201, b"", headers)
        return
    digest = name if name.startswith("sha256:") else state.tags.get((repo, name), "")
    found = state.manifests.get((repo, digest))
    if found is None:
        h.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        return
    headers = {"Content-Type": found[0], "Docker-Content-Digest": digest}
    h.answer(200, found[1] if h.command == "GET" else b"", headers)


def referrers(h: Handler, repo: str, name: str) -> None:
    if not h.double.referrers:
        h.answer(404, b"404 page not found")
        return
    entries = []
    for (r, digest), (media_type, raw) in h.double.state.manifests.items():
        document = json.loads(raw)
        if r == repo and (document.get("subject") or {}).get("digest") == name:
            entry = {"mediaType": media_type, "digest": digest, "size": len(raw)}
            entries.append({**entry, "artifactType": document.get("artifactType", "")})
    h.answer(200, json.dumps({"schemaVersion": 2, "manifests": entries}).encode(), {"Content-Type": INDEX})


def uploads(h: Handler, repo: str, name: str, query: dict[str, str]) -> None:
    state, double = h.double.state, h.double
    if h.command == "POST":
        source = (query.get("from", ""), query.get("mount", ""))
        if source in state.blobs:
            state.blobs[repo, source[1]] = state.blobs[source]
            h.answer(201, b"", {"Location": f"/v2/{repo}/blobs/{source[1]}"})
            return
        name = uuid.uuid4().hex
        state.sessions[name] = bytearray()
        h.answer(
            202,
            b"",
            {
                "Location": f"{double.location_host}/v2/{repo}/blobs/uploads/{name}?_state=a%2Bb",
                "Range": "0-0",
            },
        )
        return
    session = state.sessions.get(name)
    if session is None:
        h.error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        return
    location = {"Location": f"{double.location_host}/v2/{repo}/blobs/uploads/{name}?_state=a%2Bb"}
    if h.command == "GET":
        h.answer(204, b"", {**location, "Range": f"0-{max(0, len(session) - 1)}"})
    elif h.command == "PATCH":
        if not double.chunked:
            h.error(404, "UNSUPPORTED", "no chunks here")
            return
        begin = int(h.headers["Content-Range"].partition("-")[0])
        if begin != len(session):
            h.error(416, "BLOB_UPLOAD_INVALID", "upload resumed at wrong offset")
            return
        session += h.read_body()
        h.answer(202, b"", {**location, "Range": f"0-{len(session) - 1}"})
    elif h.command == "DELETE":
        del state.sessions[name]
        h.answer(204)
    else:
        data = bytes(session) + h.read_body()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if query.get("digest") != digest:
            h.error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            return
        state.blobs[repo, digest] = data
        del state.sessions[name]
        h.answer(201, b"", {"Docker-Content-Digest": digest, "Location": f"/v2/{repo}/blobs/{digest}"})


@contextmanager
def running_double(**values: object) -> Iterator[Double]:
    double = Double(**values)  # type: ignore[arg-type]
    handler = type("BoundHandler", (Handler,), {"double": double})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    double.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield double
    finally:
        double.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


def make_manifest(text: str = "one", **more: object) -> tuple[bytes, Descriptor]:
    raw = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "text": text, **more}).encode()
    return raw, Descriptor(media_type=MANIFEST, digest=Digest.of(raw), size_bytes=len(raw))

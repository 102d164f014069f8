"""The distribution API: what each request does, and what is answered to it."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from urllib.parse import parse_qs

from tests.support.faulty_registry.auth import Login, TokenLogin
from tests.support.faulty_registry.store import RefusedError, Store

CHUNK_BYTES = 1 << 16
_INDEX = "application/vnd.oci.image.index.v1+json"
_NAME = r"/v2/(?P<repository>[a-z0-9._/-]+)"
_DIGEST = r"(?P<digest>sha256:[0-9a-f]{64})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request.

    Attributes:
        path: Without the query, decoded.
        host: What it was sent to.
        body: The pieces of its body, read as they are asked for.
    """

    method: str
    path: str
    query: str
    host: str
    headers: Message
    body: Iterator[bytes]

    def asked(self, name: str) -> str:
        """Return a parameter of the query, or ""."""
        return parse_qs(self.query).get(name, [""])[0]


@dataclass(slots=True, kw_only=True)
class Response:
    """An answer; its body begins at `offset`, and ends before `end` where that is not 0."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Path = b""
    offset: int = 0
    end: int = 0

    @property
    def size_bytes(self) -> int:
        """Length of the body."""
        whole = len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size
        return min(self.end or whole, whole) - self.offset

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in pieces."""
        left = self.size_bytes
        if isinstance(self.body, bytes):
            yield self.body[self.offset : self.offset + left]
            return
        with self.body.open("rb") as file:
            file.seek(self.offset)
            while chunk := file.read(min(CHUNK_BYTES, left)):
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A registry apart from its server: content, login and abilities."""

    store: Store
    login: Login | None
    has_referrers_api: bool
    takes_chunks: bool
    mounts: bool
    gives_parts: bool

    def answer(self, request: Request) -> Response:
        """Do what a request asks for.

        Raises:
            RefusedError: The specification refuses it.
        """
        if isinstance(self.login, TokenLogin) and request.path == "/token":
            return self._give_token(self.login, request)
        needed = _scopes_needed(request)
        if self.login is not None and not self.login.accepts(
            request.headers.get("Authorization", ""), needed
        ):
            response = refusal(RefusedError(401, "UNAUTHORIZED", "log in"))
            response.headers["WWW-Authenticate"] = self.login.challenge(request.host, needed)
            return response
        if request.path in {"/v2", "/v2/"}:
            return Response(headers={"Content-Type": "application/json"}, body=b"{}")
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method in method.split():
                return action(self, request, **match.groupdict())
        raise RefusedError(404, "UNSUPPORTED", f"{request.method} {request.path}")

    @staticmethod
    def _give_token(login: TokenLogin, request: Request) -> Response:
        body = b"".join(request.body)
        status, answer = login.answer(
            request.method, request.query, body, request.headers.get("Authorization", "")
        )
        return Response(status=status, headers={"Content-Type": "application/json"}, body=answer)

    def _get_blob(self, request: Request, repository: str, digest: str) -> Response:
        path = self.store.blob(repository, digest)
        response = Response(headers={"Docker-Content-Digest": digest, "Accept-Ranges": "bytes"}, body=path)
        response.headers["Content-Type"] = "application/octet-stream"
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if part and self.gives_parts:
            total = response.size_bytes
            end = min(int(part[2]) + 1, total) if part[2] else total
            response.status, response.offset, response.end = 206, int(part[1]), end
            response.headers["Content-Range"] = f"bytes {part[1]}-{end - 1}/{total}"
        return response

    def _start_upload(self, request: Request, repository: str) -> Response:
        mount, source, digest = request.asked("mount"), request.asked("from"), request.asked("digest")
        if mount and source and self.mounts and self.store.mount(repository, source, mount):
            return self._created(repository, mount)
        identity = self.store.start_upload(repository)
        if digest:  # distribution-spec 1.1, "POST then PUT" in one
            self.store.append(self.store.upload(repository, identity), request.body)
            self.store.finish_upload(identity, digest)
            return self._created(repository, digest)
        return self._progress(202, repository, identity)

    def _append_upload(self, request: Request, repository: str, identity: str) -> Response:
        store = self.store
        if not self.takes_chunks:
            raise RefusedError(405, "UNSUPPORTED", "no chunks")
        upload = store.upload(repository, identity)
        offset = re.match(r"(?:bytes=)?(\d+)-\d+", request.headers.get("Content-Range", ""))
        if offset and int(offset[1]) != upload.size_bytes:
            return self._progress(416, repository, identity)
        store.append(upload, request.body)
        return self._progress(202, repository, identity)

    def _finish_upload(self, request: Request, repository: str, identity: str) -> Response:
        store = self.store
        store.append(store.upload(repository, identity), request.body)
        store.finish_upload(identity, request.asked("digest"))
        return self._created(repository, request.asked("digest"))

    def _get_upload(self, _: Request, repository: str, identity: str) -> Response:
        return self._progress(204, repository, identity)

    def _progress(self, status: int, repository: str, identity: str) -> Response:
        upload = self.store.upload(repository, identity)
        # The state in the query must come back: clients append their digest to it.
        location = f"/v2/{repository}/blobs/uploads/{identity}?_state={upload.size_bytes}"
        reached = f"0-{max(upload.size_bytes - 1, 0)}"
        return Response(
            status=status, headers={"Location": location, "Range": reached, "Docker-Upload-UUID": identity}
        )

    @staticmethod
    def _created(repository: str, digest: str) -> Response:
        location = f"/v2/{repository}/blobs/{digest}"
        return Response(status=201, headers={"Location": location, "Docker-Content-Digest": digest})

    def _get_manifest(self, _: Request, repository: str, reference: str) -> Response:
        digest, media_type, content = self.store.manifest(repository, reference)
        return Response(headers={"Content-Type": media_type, "Docker-Content-Digest": digest}, body=content)

    def _put_manifest(self, request: Request, repository: str, reference: str) -> Response:
        media_type = request.headers.get("Content-Type", "")
        content = b"".join(request.body)
        digest, subject = self.store.put_manifest(repository, reference, media_type, content)
        headers = {"Location": f"/v2/{repository}/manifests/{digest}", "Docker-Content-Digest": digest}
        if subject and self.has_referrers_api:
            headers["OCI-Subject"] = subject
        return Response(status=201, headers=headers)

    def _get_tags(self, request: Request, repository: str) -> Response:
        tags = self.store.tags(repository)
        if not tags:
            raise RefusedError(404, "NAME_UNKNOWN", repository)
        later = [tag for tag in tags if tag > request.asked("last")]
        page = later[: int(request.asked("n") or len(later))]
        headers = {"Content-Type": "application/json"}
        if len(page) < len(later):
            following = f"/v2/{repository}/tags/list?n={len(page)}&last={page[-1]}"
            headers["Link"] = f'<{following}>; rel="next"'
        return Response(headers=headers, body=json.dumps({"name": repository, "tags": page}).encode())

    def _get_referrers(self, request: Request, repository: str, digest: str) -> Response:
        if not self.has_referrers_api:
            raise RefusedError(404, "UNSUPPORTED", "no referrers API")
        found = self.store.referrers(repository, digest)
        wanted = request.asked("artifactType")
        headers = {"Content-Type": _INDEX}
        if wanted:
            found = [entry for entry in found if entry["artifactType"] == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        document = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": found}
        return Response(headers=headers, body=json.dumps(document).encode())


_ROUTES: tuple[tuple[str, str, Callable[..., Response]], ...] = (
    ("POST", rf"{_NAME}/blobs/uploads/", Site._start_upload),
    ("PATCH", rf"{_NAME}/blobs/uploads/(?P<identity>[0-9a-f]+)", Site._append_upload),
    ("PUT", rf"{_NAME}/blobs/uploads/(?P<identity>[0-9a-f]+)", Site._finish_upload),
    ("GET", rf"{_NAME}/blobs/uploads/(?P<identity>[0-9a-f]+)", Site._get_upload),
    ("GET HEAD", rf"{_NAME}/blobs/{_DIGEST}", Site._get_blob),
    ("GET HEAD", rf"{_NAME}/manifests/(?P<reference>[^/]+)", Site._get_manifest),
    ("PUT", rf"{_NAME}/manifests/(?P<reference>[^/]+)", Site._put_manifest),
    ("GET", rf"{_NAME}/tags/list", Site._get_tags),
    ("GET", rf"{_NAME}/referrers/{_DIGEST}", Site._get_referrers),
)


def _scopes_needed(request: Request) -> tuple[str, ...]:
    """Name the scopes that a token must have (distribution docs/spec/auth/scope.md, v2.8)."""
    found = re.match(rf"{_NAME}/(blobs|manifests|tags|referrers)/", request.path)
    if not found:
        return ()
    actions = "pull" if request.method in {"GET", "HEAD"} else "pull,push"
    source = request.asked("from")
    mounting = (f"repository:{source}:pull",) if request.asked("mount") and source else ()
    return (f"repository:{found['repository']}:{actions}", *mounting)


def refusal(error: RefusedError) -> Response:
    document = {"errors": [{"code": error.code, "message": str(error)}]}
    body = json.dumps(document).encode()
    return Response(status=error.status, headers={"Content-Type": "application/json"}, body=body)

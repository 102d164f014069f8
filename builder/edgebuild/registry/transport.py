"""Requests to one registry: where they may go, what they carry, and what becomes of a failure.

Every request takes this way:
1. The address is allowed: HTTPS, or plain HTTP to this machine.
2. The registry's own host, and it alone, sees our authorization.
3. An answer 401 is met with the login or a fresh token.
4. A redirect of a reading request is followed, also to another host, without authorization.
5. An unwelcome answer or a broken connection becomes an error, which `send` retries when that makes sense.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from edgebuild.errors import RegistryError
from edgebuild.network import RoutingTransport, Stop, is_loopback_host, tls_context
from edgebuild.progress import Progress
from edgebuild.registry.auth import Authorizer, parse_challenges
from edgebuild.registry.credentials import find_credential
from edgebuild.registry.faults import ERROR_BODY_BYTES, Call, TransientError, faults, refusal
from edgebuild.registry.patience import Limits, Patience

MANIFEST_BYTES = 4 << 20
# Where Docker and podman look for the authority of one registry.
_CERTIFICATE_FOLDERS = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_HOPS = 5
# More than one: a fresh token may be used up or revoked before it is seen.
_MAX_CHALLENGES = 3
# docker/cli: the hub's API is not at the host that its references name.
_API_HOSTS = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a request carries; may be asked for again when it has to be sent again.

    Attributes:
        size_bytes: Its length.
        chunks: Gives the bytes from the start.
    """

    size_bytes: int
    chunks: Callable[[], Iterator[bytes]]

    @classmethod
    def of_bytes(cls, data: bytes) -> "Body":
        """Wrap bytes."""
        return cls(size_bytes=len(data), chunks=lambda: iter((data,) if data else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a registry.

    Attributes:
        method: HTTP method.
        url: Absolute address.
        call: The same for messages.
        expect: Statuses that are no failure.
        headers: Headers besides Authorization and Content-Length.
        body: What is sent, or None.
        answer_s: Seconds to wait for the answer, or None for the usual.
    """

    method: str
    url: str
    call: Call
    expect: frozenset[int]
    headers: Mapping[str, str]
    body: Body | None = None
    answer_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, whole.

    Attributes:
        status: HTTP status.
        headers: Its headers.
        url: Where it came from in the end.
        body: Its body.
    """

    status: int
    headers: httpx2.Headers
    url: httpx2.URL
    body: bytes


class Transport:
    """One connection pool, login and patience for one repository. Safe to use from several threads."""

    def __init__(
        self,
        registry: str,
        repository: str,
        *,
        actions: str,
        environment: Mapping[str, str],
        progress: Progress,
        limits: Limits,
        mount_from: str = "",
    ) -> None:
        """Make ready; nothing is sent yet.

        Args:
            registry: Host, with its port when given.
            repository: Path inside it.
            actions: What will be asked of the repository: "pull" or "pull,push".
            environment: For proxies, certificates and logins.
            progress: Told of waits.
            limits: Patience.
            mount_from: Another repository of the registry that blobs may be mounted from, or "".

        Raises:
            ToolError: Certificates cannot be read, or a proxy variable is no address.
        """
        self.registry = registry
        self.repository = repository
        self.limits = limits
        self.closing = Stop()
        self._progress = progress
        host = httpx2.URL(f"//{registry}").host
        self.base = (
            f"{'http' if is_loopback_host(host) else 'https'}://{_API_HOSTS.get(registry, registry)}/v2/"
        )
        self._origin = _origin(httpx2.URL(self.base))
        self._environment = environment
        self._context = tls_context(environment, authorities=_own_authorities(registry))
        self._client = self.connect(self.closing)
        scopes = [f"repository:{repository}:{actions}"]
        if mount_from:
            scopes.append(f"repository:{mount_from}:pull")
        self._authorizer = Authorizer(
            registry,
            scopes=tuple(scopes),
            find=lambda: find_credential(registry, repository, environment),
            fetch=self._fetch_token,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and waits."""
        self.closing.set()
        self._client.close()
        self.closing.close()

    def connect(self, stop: Stop) -> httpx2.Client:
        """Make a pool of connections that end when `stop` is set; it follows nothing and adds no authorization."""
        return httpx2.Client(
            transport=RoutingTransport(self._environment, self._context),
            timeout=httpx2.Timeout(self.limits.idle_s, connect=self.limits.connect_s, pool=None),
            headers={"User-Agent": "edgebuild", "Accept-Encoding": "identity"},
            follow_redirects=False,
            trust_env=False,
            event_hooks={"request": [stop.watch]},
        )

    def authorization(self, url: httpx2.URL) -> dict[str, str]:
        """Give the header that an address may see: none of another host (2.)."""
        header = self._authorizer.header() if _origin(url) == self._origin else ""
        return {"Authorization": header} if header else {}

    def call(self, method: str, what: str) -> Call:
        """Name a request for messages."""
        return Call(method=method, what=what, where=f"{self.registry}/{self.repository}")

    def url(self, path: str) -> str:
        """Give the address of a path inside the repository, e.g. "tags/list"."""
        return f"{self.base}{self.repository}/{path}"

    def patience(self) -> Patience:
        """Begin to count tries."""
        return Patience(self.limits, closing=self.closing, progress=self._progress)

    def request(
        self,
        method: str,
        url: str,
        what: str,
        *,
        expect: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        answer_s: float | None = None,
    ) -> Request:
        """Put a request together; `expect` are the statuses that are no failure."""
        return Request(
            method=method,
            url=url,
            call=self.call(method, what),
            expect=frozenset(expect),
            headers=headers or {},
            body=body,
            answer_s=answer_s,
        )

    def send(self, request: Request, *, cap_bytes: int = MANIFEST_BYTES) -> Answer:
        """Send a request that does the same however often it arrives; retry what may pass.

        Raises:
            RegistryError: The registry refused, or failed to the end of our patience, or sent more than `cap_bytes`.
        """
        patience = self.patience()
        while True:
            try:
                return self.send_once(request, cap_bytes=cap_bytes)
            except TransientError as fault:
                patience.wait(fault)

    def send_once(self, request: Request, *, cap_bytes: int = MANIFEST_BYTES) -> Answer:
        """Send a request without retries.

        Raises:
            TransientError: It may pass at the next try.
            RegistryError: It will not.
        """
        with self.open(request) as response:
            body = self._read(response, request.call, cap_bytes=cap_bytes)
        return Answer(status=response.status_code, headers=response.headers, url=response.url, body=body)

    @contextmanager
    def open(self, request: Request) -> Iterator[httpx2.Response]:
        """Send a request once and hand out the answer with its body unread; read it with `iter_raw`.

        Raises:
            RegistryError: Likewise; also for failures while the body is read inside the context.
        """
        with faults(request.call):
            response = self._exchange(request)
            try:
                yield response
            finally:
                response.close()

    def _exchange(self, request: Request) -> httpx2.Response:
        url, hops, challenged = httpx2.URL(request.url), 0, 0
        while True:
            self._check_allowed(url, request.call)  # 1.
            is_ours = _origin(url) == self._origin
            authorization = self._authorizer.header() if is_ours else ""  # 2.
            response = self._send(request, url, authorization)
            if response.status_code in request.expect:
                return response
            if response.status_code == 401 and is_ours and challenged < _MAX_CHALLENGES:  # 3.
                challenged += 1
                challenges = parse_challenges(response.headers.get_list("WWW-Authenticate"))
                body = self._drain(response)
                if self._authorizer.answer(challenges, sent=authorization):
                    continue
                raise self._refusal(request, response, body, authorization)
            location = response.headers.get("Location", "")
            if response.status_code in _REDIRECTS and location and request.method in {"GET", "HEAD"}:  # 4.
                hops += 1
                self._drain(response)
                if hops > _MAX_HOPS:
                    raise RegistryError(f"{request.call}: redirected more than {_MAX_HOPS} times")
                url = self.target(url, location)
                continue
            raise self._refusal(request, response, self._drain(response), authorization)  # 5.

    def target(self, base: httpx2.URL, location: str) -> httpx2.URL:
        """Resolve a Location header. Our own host stays on the scheme that we reached it by.

        Registries behind a proxy that ends TLS often write "http" there, not knowing better.
        """
        url = base.join(location)
        ours = httpx2.URL(self.base)
        if url.host == ours.host and url.scheme == "http" and ours.scheme == "https":
            url = url.copy_with(scheme="https", port=ours.port if url.port in {80, None} else url.port)
        return url

    def _refusal(
        self, request: Request, response: httpx2.Response, body: bytes, authorization: str
    ) -> RegistryError:
        return refusal(
            request.call, response, body, logged_in=bool(authorization) and self._authorizer.logged_in
        )

    def _send(self, request: Request, url: httpx2.URL, authorization: str) -> httpx2.Response:
        headers = dict(request.headers)
        if authorization:
            headers["Authorization"] = authorization
        content = None
        if request.body is not None:
            headers["Content-Length"] = str(request.body.size_bytes)
            content = request.body.chunks()
        timeout = httpx2.Timeout(
            self.limits.idle_s,
            connect=self.limits.connect_s,
            read=request.answer_s or self.limits.idle_s,
            pool=None,
        )
        built = self._client.build_request(
            request.method, url, headers=headers, content=content, timeout=timeout
        )
        return self._client.send(built, stream=True)

    def _fetch_token(
        self, method: str, url: str, call: Call, *, headers: dict[str, str], body: bytes, cap_bytes: int
    ) -> bytes:
        """Ask the token server once (see `auth.Fetch`); redirects are refused, since the login would follow them."""
        request = Request(
            method=method,
            url=url,
            call=call,
            expect=frozenset({200}),
            headers=headers,
            body=Body.of_bytes(body) if body else None,
        )
        target = httpx2.URL(url)
        self._check_allowed(target, call)
        response = self._send(request, target, "")
        try:
            if response.status_code != 200:
                text = self._drain(response)
                raise refusal(call, response, text, logged_in="Authorization" in headers)
            return self._read(response, call, cap_bytes=cap_bytes)
        finally:
            response.close()

    def _check_allowed(self, url: httpx2.URL, call: Call) -> None:
        if url.scheme == "https" or (url.scheme == "http" and is_loopback_host(url.host)):
            return
        raise RegistryError(
            f"{call}: sent on to {url.scheme}://{url.host}, which is not HTTPS",
            hint="plain HTTP is for registries on this machine only; ask the registry's operator to mend its addresses",
        )

    def _read(self, response: httpx2.Response, call: Call, *, cap_bytes: int) -> bytes:
        """Read a small body, with an end to its size and to its time."""
        until_s = time.monotonic() + self.limits.deadline_s
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > cap_bytes:
                raise RegistryError(
                    f"{call}: the answer is larger than {cap_bytes} bytes",
                    hint="no manifest or list is that large; check what the name points to",
                )
            if time.monotonic() > until_s:
                raise TransientError(f"{call}: the answer did not end within {self.limits.deadline_s:.0f} s")
        return bytes(body)

    def _drain(self, response: httpx2.Response) -> bytes:
        """Read the beginning of a body that only explains a refusal, and be done with the answer."""
        body = bytearray()
        try:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) >= ERROR_BODY_BYTES:
                    break
        except httpx2.HTTPError:
            pass  # the status is known, and it is what counts
        finally:
            response.close()
        return bytes(body[:ERROR_BODY_BYTES])


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme, 0)


def _own_authorities(registry: str) -> tuple[Path, ...]:
    return tuple(
        path for folder in _CERTIFICATE_FOLDERS for path in sorted((folder / registry).glob("*.crt"))
    )

"""What can go wrong between a registry and us, told in one line with what to do about it.

Two kinds matter to the caller: a refusal is an answer and stays one; a transient fault may be gone at the next try.
"""

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from edgebuild.errors import RegistryError
from edgebuild.network import retry_after_s

ERROR_BODY_BYTES = 64 << 10
_SHOWN_CHARACTERS = 240
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What was asked of whom, for messages.

    Attributes:
        method: The HTTP method.
        what: The thing, e.g. "manifest 1.4".
        where: Registry and repository, e.g. "registry.example.com/acme/llm".
    """

    method: str
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.method} {self.what} at {self.where}"


class RefusedError(RegistryError):
    """An answer that says no.

    Attributes:
        status: HTTP status.
        codes: OCI error codes, e.g. ("DIGEST_INVALID",).
    """

    def __init__(self, message: str, *, hint: str, status: int, codes: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.codes = codes


class TransientError(RegistryError):
    """A fault that may be gone at the next try.

    Attributes:
        retry_after_s: Seconds that the registry asked to wait, or None.
    """

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


def refusal(call: Call, response: httpx2.Response, body: bytes, *, logged_in: bool) -> RegistryError:
    """Turn an unwelcome answer into an error.

    Args:
        call: What was asked.
        response: Its status and headers.
        body: The first `ERROR_BODY_BYTES` of its body at most.
        logged_in: Whether credentials were sent with it.
    """
    status = response.status_code
    errors = tuple(_oci_errors(body))
    codes = tuple(dict.fromkeys(code for code, _ in errors if code))
    said = "; ".join(dict.fromkeys(text for _, text in errors if text))
    parts = [f"{status}" + (f" {', '.join(codes)}" if codes else f" {_reason(response)}")]
    if said:
        parts.append(_shown(said))
    message = f"{call}: {': '.join(parts)}".rstrip()
    hint = _hint(call, status, codes, logged_in=logged_in)
    if status in _TRANSIENT_STATUSES:
        return TransientError(message, hint=hint, retry_after_s=retry_after_s(response.headers))
    return RefusedError(message, hint=hint, status=status, codes=codes)


def outage(call: Call, error: httpx2.HTTPError) -> RegistryError:
    """Turn a failure to exchange messages into an error, by what caused it."""
    causes = tuple(_causes(error))
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return RegistryError(
            f"{call}: its certificate is not trusted: {_shown(tls.verify_message)}",
            hint="name the authority's certificate in SSL_CERT_FILE, or put it into /etc/docker/certs.d/HOST/ca.crt",
        )
    if tls is not None and tls.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
        return RegistryError(
            f"{call}: it does not speak TLS",
            hint="plain HTTP is for registries on this machine only (127.0.0.1, localhost); give the registry a certificate",
        )
    if any(isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN for cause in causes):
        return RegistryError(
            f"{call}: there is no such host", hint="check the registry's name and this machine's name server"
        )
    if isinstance(error, httpx2.ProxyError):
        return RegistryError(
            f"{call}: the proxy refused: {_shown(str(error))}",
            hint="check HTTPS_PROXY and its login, or name the registry in NO_PROXY",
        )
    if isinstance(error, httpx2.TimeoutException):
        kind = "did not accept a connection" if isinstance(error, httpx2.ConnectTimeout) else "did not answer"
        return TransientError(f"{call}: it {kind} in time", hint=_NETWORK_HINT)
    told = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), "")
    begun = "cannot connect" if isinstance(error, httpx2.ConnectError) else "the connection broke"
    return TransientError(f"{call}: {begun}: {_shown(told or str(error))}", hint=_NETWORK_HINT)


@contextmanager
def faults(call: Call) -> Iterator[None]:
    """Turn what the HTTP client raises inside the context into an error of the registry.

    Raises:
        RegistryError: It will not pass.
        TransientError: It may pass at the next try.
    """
    try:
        yield
    except httpx2.HTTPError as error:
        raise outage(call, error) from error
    except (httpx2.InvalidURL, httpx2.StreamError) as error:
        raise RegistryError(f"{call}: {error}", hint="the registry's answer is broken") from error


def lie(call: Call, told: str, found: str) -> RegistryError:
    """Make the error for a registry whose words and bytes differ."""
    return RegistryError(
        f"{call}: the registry says {_shown(told)}, but it is {found}",
        hint="do not use these bytes; the registry or something between it and this machine is damaged or hostile",
    )


_NETWORK_HINT = "check that the registry runs and can be reached from here (HTTPS_PROXY, NO_PROXY, firewall)"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _oci_errors(body: bytes) -> Iterator[tuple[str, str]]:
    """Yield codes and messages (distribution-spec v1.1, "Error Codes"); a body of another kind yields nothing."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return
    errors = document.get("errors") if isinstance(document, dict) else None
    if isinstance(document, dict) and isinstance(errors, list):
        for error in errors[:8]:
            if isinstance(error, dict):
                yield _shown(str(error.get("code") or "")), str(error.get("message") or "")
    elif isinstance(document, dict):
        # Token servers answer like RFC 6749 section 5.2 or with a plain message.
        text = document.get("error_description") or document.get("details") or document.get("message")
        yield "", str(text or "")


def _hint(call: Call, status: int, codes: tuple[str, ...], *, logged_in: bool) -> str:
    registry = call.where.partition("/")[0]
    if status == 401:
        return (
            f"the login was refused; log in again: docker login {registry}"
            if logged_in
            else f"log in first: docker login {registry}"
        )
    for code in codes:
        if code in _CODE_HINTS:
            return _CODE_HINTS[code]
    if status >= 500:
        return "the registry fails; try again later, or read its log"
    return _STATUS_HINTS.get(status, "")


_CODE_HINTS = {
    "DIGEST_INVALID": "the bytes were damaged on the way, or the file changed while it was read; push again",
    "MANIFEST_BLOB_UNKNOWN": "the registry lost a blob that was just sent; push again",
    "NAME_UNKNOWN": "check the repository's name; some registries want it created first",
    "NAME_INVALID": "check the repository's name",
}
_STATUS_HINTS = {
    403: "this login may not do that here; ask the repository's owner for permission, or check its name",
    404: "check the name; nothing like that is there, or this login may not see it",
    405: "the registry takes no pushes (is it read-only, or a mirror?)",
    413: "the registry, or a proxy before it, limits the size of an upload; raise that limit",
    429: "the registry limits how much is asked of it; wait, or log in for a higher limit",
}


def _reason(response: httpx2.Response) -> str:
    return httpx2.codes.get_reason_phrase(response.status_code)


def _shown(text: str) -> str:
    """Make a stranger's text fit for one line of a terminal: no control characters, not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"

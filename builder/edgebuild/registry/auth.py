"""Authorization as registries ask for it: Basic, or a bearer token from the token server that they name.

Source: distribution/distribution docs/content/spec/auth/token.md and oauth.md; RFC 9110 section 11.6.1.
"""

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlencode

import httpx2

from edgebuild.errors import RegistryError
from edgebuild.registry.credentials import Credential
from edgebuild.registry.faults import Call, RefusedError

_CLIENT_ID = "edgebuild"
_CHALLENGE = re.compile(r"(?:^|,)\s*(Basic|Bearer)(?:\s+|$)", re.IGNORECASE)
_PARAMETER = re.compile(r'([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
# token.md: "expires_in … if omitted, this defaults to 60 seconds".
_DEFAULT_LIFE_S = 60.0
# A token is renewed before its end, so that a body of megabytes is not sent in vain.
_USED_SHARE_OF_LIFE = 0.8
_TOKEN_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a registry wants to see, from WWW-Authenticate.

    Attributes:
        scheme: "basic" or "bearer".
        realm: Address of the token server.
        service: Name of the registry there, or "".
        scope: What the request needs, or "".
    """

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


class Fetch(Protocol):
    """How the token server is asked: one try, no authorization but what `headers` hold."""

    def __call__(
        self, method: str, url: str, call: Call, *, headers: dict[str, str], body: bytes, cap_bytes: int
    ) -> bytes:
        """Return the body of an answer 200.

        Raises:
            RegistryError: Anything else.
        """
        ...


def parse_challenges(headers: Sequence[str]) -> tuple[Challenge, ...]:
    """Read the WWW-Authenticate headers of an answer; schemes that we do not speak are left out."""
    found = []
    for header in headers:
        starts = list(_CHALLENGE.finditer(header))
        ends = [*(match.start() for match in starts[1:]), len(header)]
        for start, end in zip(starts, ends, strict=False):
            text = header[start.end() : end]
            parameters = {
                name.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain
                for name, quoted, plain in _PARAMETER.findall(text)
            }
            found.append(
                Challenge(
                    scheme=start[1].lower(),
                    realm=parameters.get("realm", ""),
                    service=parameters.get("service", ""),
                    scope=parameters.get("scope", ""),
                )
            )
    return tuple(found)


class Authorizer:
    """Keeps the Authorization header of one registry up to date. Safe to use from several threads."""

    def __init__(
        self,
        registry: str,
        *,
        scopes: tuple[str, ...],
        find: Callable[[], Credential | None],
        fetch: Fetch,
    ) -> None:
        """Args as follows.

        Args:
            registry: Host, for messages.
            scopes: What the requests to come need, e.g. "repository:acme/llm:pull,push".
            find: Looks the login up; called at the first challenge only.
            fetch: Asks the token server.
        """
        self._registry = registry
        self._scopes = scopes
        self._find = find
        self._fetch = fetch
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._credential: Credential | None = None
        self._looked_up = False
        self._header = ""
        self._renew_at_s = float("inf")

    @property
    def logged_in(self) -> bool:
        """Whether a login was found and used."""
        return self._credential is not None

    def header(self) -> str:
        """Return what to send, "" before the first challenge; renews a token that is about to end.

        Raises:
            RegistryError: The token server failed.
        """
        with self._lock:
            if self._challenge is not None and time.monotonic() >= self._renew_at_s:
                self._renew(self._challenge)
            return self._header

    def answer(self, challenges: Sequence[Challenge], *, sent: str) -> bool:
        """Make ready for another try after an answer 401.

        Args:
            challenges: What the answer asked for.
            sent: The header that was refused.

        Returns:
            Whether another try makes sense: False when we have nothing else to show.

        Raises:
            RegistryError: The token server failed or refused.
        """
        with self._lock:
            if self._header and self._header != sent:
                return True  # another thread was faster
            challenge = next((c for c in challenges if c.scheme == "bearer" and c.realm), None) or next(
                (c for c in challenges if c.scheme == "basic"), None
            )
            if challenge is None:
                return False
            if not self._looked_up:
                self._credential = self._find()
                self._looked_up = True
            self._challenge = challenge
            self._renew(challenge)
            return bool(self._header) and (challenge.scheme == "bearer" or self._header != sent)

    def _renew(self, challenge: Challenge) -> None:
        credential = self._credential
        self._renew_at_s = float("inf")
        if credential is not None and credential.registry_token:
            self._header = f"Bearer {credential.registry_token}"
        elif challenge.scheme == "basic":
            self._header = _basic(credential) if credential is not None and credential.username else ""
        else:
            asked_s = time.monotonic()
            token, life_s = self._token(challenge, credential)
            self._header = f"Bearer {token}"
            self._renew_at_s = asked_s + life_s * _USED_SHARE_OF_LIFE

    def _token(self, challenge: Challenge, credential: Credential | None) -> tuple[str, float]:
        scopes = tuple(dict.fromkeys((*self._scopes, *challenge.scope.split())))
        realm = httpx2.URL(challenge.realm)
        call = Call(method="POST" if _has_identity(credential) else "GET", what="a token", where=realm.host)
        try:
            if credential is not None and credential.identity_token:
                form = {
                    "grant_type": "refresh_token",
                    "service": challenge.service,
                    "client_id": _CLIENT_ID,
                    "scope": " ".join(scopes),
                    "refresh_token": credential.identity_token,
                }
                raw = self._fetch(
                    "POST",
                    challenge.realm,
                    call,
                    headers={"Content-Type": "application/x-www-form-urlencoded"},
                    body=urlencode(form).encode(),
                    cap_bytes=_TOKEN_ANSWER_BYTES,
                )
            else:
                query = [("service", challenge.service), *(("scope", scope) for scope in scopes)]
                headers = {"Authorization": _basic(credential)} if credential is not None else {}
                joint = "&" if realm.query else "?"
                raw = self._fetch(
                    "GET",
                    f"{challenge.realm}{joint}{urlencode([pair for pair in query if pair[1]])}",
                    call,
                    headers=headers,
                    body=b"",
                    cap_bytes=_TOKEN_ANSWER_BYTES,
                )
        except RefusedError as error:
            if error.status not in {400, 401, 403}:
                raise
            raise self._login_refused(error, credential) from error
        return _parse_token(raw, call)

    def _login_refused(self, error: RefusedError, credential: Credential | None) -> RefusedError:
        if credential is None:
            hint = f"log in first: docker login {self._registry}"
        else:
            hint = (
                f"the login from {credential.source} was refused; log in again: docker login {self._registry}"
            )
        return RefusedError(error.message, hint=hint, status=error.status, codes=error.codes)


def _has_identity(credential: Credential | None) -> bool:
    return credential is not None and bool(credential.identity_token)


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _parse_token(raw: bytes, call: Call) -> tuple[str, float]:
    """Read a token and its life in seconds from the token server's answer (token.md, "Token Response Fields")."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    token = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
    if (
        not isinstance(document, dict)
        or not isinstance(token, str)
        or not token.isascii()
        or not token.isprintable()
    ):
        raise RegistryError(
            f"{call}: the answer holds no token", hint="the registry's token server is broken"
        )
    life = document.get("expires_in")
    if isinstance(life, bool) or not isinstance(life, int | float):
        return token, _DEFAULT_LIFE_S
    return token, max(float(life), 1.0)

"""Logins: HTTP Basic, and the token protocol of the distribution project with tokens that expire."""

import base64
import json
import secrets
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs

_SERVICE = "tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicLogin:
    """Every request must carry the login."""

    username: str = "edge"
    password: str = "loopback-only"

    def accepts(self, authorization: str, needed: tuple[str, ...] = ()) -> bool:  # noqa: ARG002
        """Check the Authorization header."""
        pair = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        return secrets.compare_digest(authorization.encode(), f"Basic {pair}".encode())

    def challenge(self, host: str, needed: tuple[str, ...]) -> str:  # noqa: ARG002
        """Say in WWW-Authenticate how to log in."""
        return 'Basic realm="tests"'


@dataclass(slots=True, kw_only=True)
class TokenLogin:
    """Requests must carry a bearer token, which `/token` gives for the login.

    Attributes:
        identity_token: What `POST /token` takes as refresh token, in place of the login.
        uses: Requests that a token is good for; the next is answered with 401, as when it expired.
        scopes: What was asked for, in order: one entry per token, its scopes joined by blanks.
    """

    username: str = "edge"
    password: str = "loopback-only"
    identity_token: str = "identity"
    uses: int = 1_000_000
    scopes: list[str] = field(default_factory=list)
    _left: dict[str, int] = field(default_factory=dict)
    _granted: dict[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def accepts(self, authorization: str, needed: tuple[str, ...]) -> bool:
        """Check the Authorization header against the scopes needed, and count the use of its token."""
        token = authorization.removeprefix("Bearer ")
        with self._lock:
            if self._left.get(token, 0) <= 0 or not _grants(needed) <= self._granted[token]:
                return False
            self._left[token] -= 1
            return True

    def challenge(self, host: str, needed: tuple[str, ...]) -> str:
        """Say in WWW-Authenticate where to get a token, and for what."""
        realm = f'Bearer realm="http://{host}/token",service="{_SERVICE}"'
        return f'{realm},scope="{" ".join(needed)}"' if needed else realm

    def answer(self, method: str, query: str, body: bytes, authorization: str) -> tuple[int, bytes]:
        """Answer a request for a token: GET with the login, or POST with the identity token.

        Source: distribution docs/spec/auth/token.md and docs/spec/auth/oauth.md, v2.8.
        """
        asked = parse_qs(query if method == "GET" else body.decode())
        if method == "GET":
            login = BasicLogin(username=self.username, password=self.password)
            granted = login.accepts(authorization)
        else:
            granted = asked.get("grant_type") == ["refresh_token"] and asked.get("refresh_token") == [
                self.identity_token
            ]
        if not granted or asked.get("service") != [_SERVICE]:
            return 401, b'{"errors":[{"code":"UNAUTHORIZED","message":"no token for this login"}]}'
        token = secrets.token_urlsafe(24)
        with self._lock:
            scopes = " ".join(asked.get("scope", []))
            self.scopes.append(scopes)
            self._left[token] = self.uses
            self._granted[token] = _grants(tuple(scopes.split()))
        return 200, json.dumps({"token": token, "access_token": token, "expires_in": 300}).encode()


def _grants(scopes: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    """Take scopes apart into pairs of a resource and one action."""
    pairs = (scope.rpartition(":") for scope in scopes)
    return frozenset((resource, action) for resource, _, actions in pairs for action in actions.split(","))


Login = BasicLogin | TokenLogin

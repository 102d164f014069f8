"""The way to mirrors and indexes: whom to trust, which proxy to take, how long to wait."""

import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx

from edgebuild.errors import ToolError

CONNECT_S = 15.0
IDLE_S = 60.0


class Stop(threading.Event):
    """Ends the work of other threads when it is set: their connections too, which else notice nothing before a time-out."""

    def __init__(self) -> None:
        """Nothing is stopped yet."""
        super().__init__()
        self._guard = threading.Lock()
        self._ends: list[socket.socket] = []

    def set(self) -> None:
        """End every connection, and those that are still being made when they are."""
        super().set()
        with self._guard:
            for end in self._ends:
                _shut_down(end)

    def close(self) -> None:
        """Forget the connections."""
        for end in self._ends:
            end.close()

    def watch(self, request: httpx.Request) -> None:
        """Learn of the connections that a request opens; a hook of httpx."""
        request.extensions["trace"] = self._trace

    def _trace(self, event: str, details: Mapping[str, Any]) -> None:
        # https://www.encode.io/httpcore/extensions/, "trace"
        if event.endswith("connect_tcp.complete"):
            # A copy, since TLS takes the socket itself away.
            end = details["return_value"].get_extra_info("socket").dup()
            with self._guard:
                self._ends.append(end)
                if self.is_set():
                    _shut_down(end)


def _shut_down(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def make_client(environment: Mapping[str, str], *, stop: Stop | None = None) -> httpx.Client:
    """Make an HTTP client that heeds proxies and certificate variables of `environment`, not of this process.

    Args:
        environment: The host's.
        stop: Ends its connections from another thread.

    Raises:
        ToolError: A certificate file or a proxy's address is no good.
    """
    try:
        context = _tls_context(environment)
        mounts = {
            pattern: None if proxy is None else httpx.HTTPTransport(proxy=proxy, verify=context)
            for pattern, proxy in _proxies(environment).items()
        }
    except (OSError, ssl.SSLError) as error:
        raise ToolError(
            f"certificates cannot be read: {error}", hint="check SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        # The address is not repeated: it may hold a password.
        raise ToolError(
            "a proxy variable holds no address", hint="write http_proxy and https_proxy as http://HOST:PORT"
        ) from error
    return httpx.Client(
        verify=context,
        mounts=mounts,
        trust_env=False,
        follow_redirects=True,
        timeout=httpx.Timeout(IDLE_S, connect=CONNECT_S),
        headers={"User-Agent": "edgebuild"},
        event_hooks={"request": [stop.watch] if stop else []},
    )


def _tls_context(environment: Mapping[str, str]) -> ssl.SSLContext:
    file, folder = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
    if file or folder:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=file or None, capath=folder or None)
        return context
    context = ssl.create_default_context()
    if not context.get_ca_certs():
        # A Python that was not built for this system does not know where its certificates are.
        return httpx.create_ssl_context(trust_env=False)
    return context


def _proxies(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Translate the variables into httpx's URL patterns; None goes directly."""
    found: dict[str, str | None] = {}
    for scheme in ("http", "https", "all"):
        if address := _variable(environment, f"{scheme}_proxy"):
            found[f"{scheme}://"] = address if "://" in address else f"http://{address}"
    if not found:
        return {}
    for entry in ("localhost", "127.0.0.1", "[::1]", *_variable(environment, "no_proxy").split(",")):
        name = entry.strip()
        if name == "*":
            return {}
        if not name:
            continue
        if "://" in name:
            found[name] = None
            continue
        host = name.removeprefix("*").removeprefix(".")
        found[f"all://{host}"] = None
        if not host.replace(".", "").isdigit() and not host.startswith("["):
            found[f"all://*.{host}"] = None
    return found


def _variable(environment: Mapping[str, str], name: str) -> str:
    return (environment.get(name) or environment.get(name.upper()) or "").strip()

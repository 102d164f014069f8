"""The way to any server: whom to trust, which proxy to take, how long to wait; by the host's environment, not this process's.

Only code that meets the network imports this: the HTTP client is slow to import.
"""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any

import certifi
import httpx2

from edgebuild.errors import ToolError

CONNECT_S = 15.0
IDLE_S = 60.0
# What a try must bring to count as getting further: a server that drips a few bytes a minute would be asked for ever.
FURTHER_BYTES = 16 << 10
_PROXY_HINT = "write it as http://HOST:PORT or https://HOST:PORT, or unset it"


class Stop(threading.Event):
    """Ends the work of other threads when it is set: their connections and programs too, which else notice nothing before a time-out."""

    def __init__(self) -> None:
        """Nothing is stopped yet."""
        super().__init__()
        self._guard = threading.Lock()
        self._ends: list[socket.socket] = []
        self._endings: list[Callable[[], None]] = []
        self._children: list[Stop] = []

    def set(self) -> None:
        """End every connection and program, and those that are still being made when they are."""
        super().set()
        with self._guard:
            for end in self._ends:
                _shut_down(end)
            for ending in self._endings:
                ending()
            children = tuple(self._children)
        for child in children:
            child.set()

    def close(self) -> None:
        """Forget the connections."""
        with self._guard:
            for end in self._ends:
                end.close()
            self._ends.clear()

    @contextmanager
    def child(self) -> Iterator["Stop"]:
        """Give a stop of its own to a part of the work; it is set with this one, not the other way round."""
        child = Stop()
        with self._guard:
            self._children.append(child)
        if self.is_set():
            child.set()
        try:
            yield child
        finally:
            with self._guard:
                self._children.remove(child)
            child.close()

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Have `end` called when this is set while the context lasts, or was set before; see process.run."""
        with self._guard:
            self._endings.append(end)
            if self.is_set():
                end()
        try:
            yield
        finally:
            with self._guard:
                self._endings.remove(end)

    def watch(self, request: httpx2.Request) -> None:
        """Learn of the connections that a request opens; a hook of httpx2."""
        request.extensions["trace"] = self._trace

    def release(self, response: httpx2.Response) -> None:
        """Let go of the connection of an answer that is left unread, so that it ends at its server too when it is closed."""
        stream = response.extensions.get("network_stream")
        address = None if stream is None else stream.get_extra_info("client_addr")
        with self._guard:
            left = [end for end in self._ends if end.getsockname() == address]
            for end in left:
                self._ends.remove(end)
                end.close()

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


def make_client(
    environment: Mapping[str, str], *, stop: Stop | None = None, idle_s: float = IDLE_S
) -> httpx2.Client:
    """Make an HTTP client that follows redirects; of headers, another server than the one asked sees no Authorization.

    Args:
        environment: The host's.
        stop: Ends its connections from another thread.
        idle_s: Seconds without a byte in either direction after which a connection counts as dead.

    Raises:
        ToolError: A certificate file or a proxy's address is no good.
    """
    return httpx2.Client(
        transport=RoutingTransport(environment, tls_context(environment)),
        trust_env=False,
        follow_redirects=True,
        timeout=httpx2.Timeout(idle_s, connect=min(CONNECT_S, idle_s)),
        headers={"User-Agent": "edgebuild"},
        event_hooks={"request": [stop.watch] if stop else []},
    )


def tls_context(environment: Mapping[str, str], *, authorities: Iterable[Path] = ()) -> ssl.SSLContext:
    """Trust what SSL_CERT_FILE or SSL_CERT_DIR name, else the system's authorities.

    Args:
        environment: The host's.
        authorities: Files of certificates that are trusted in any case.

    Returns:
        The same context for the same places: reading a system's authorities takes 20 ms.

    Raises:
        ToolError: A certificate file cannot be read.
    """
    own = tuple(authorities)
    named_file, named_folder = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
    try:
        return _load_authorities(named_file, named_folder, own)
    except (OSError, ssl.SSLError) as error:
        places = ", ".join(str(place) for place in (named_file, named_folder, *own) if place)
        raise ToolError(
            f"trusted certificates cannot be read from {places}: {error}",
            hint="SSL_CERT_FILE names a file of PEM certificates, SSL_CERT_DIR a folder of them",
        ) from error


@cache
def _load_authorities(
    named_file: str | None, named_folder: str | None, own: tuple[Path, ...]
) -> ssl.SSLContext:
    if named_file or named_folder:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=named_file or None, capath=named_folder or None)
    else:
        # A system without authorities, or a Python that was not built for this system and does not know where they are.
        context = ssl.create_default_context(cafile=None if _has_system_authorities() else certifi.where())
    for path in own:
        context.load_verify_locations(cafile=path)
    return context


def _has_system_authorities() -> bool:
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.openssl_cafile), Path(paths.openssl_capath)
    return file.is_file() or (folder.is_dir() and any(folder.iterdir()))


def is_loopback_host(host: str) -> bool:
    """Say whether a host, without port and brackets, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(url: httpx2.URL, environment: Mapping[str, str]) -> str:
    """Choose the proxy for a URL, "" for none; this machine is always reached directly.

    Reads https_proxy, http_proxy, all_proxy and no_proxy, and the same in upper case; NO_PROXY as in Go: hosts, domains,
    host:port, address ranges, "*".
    """
    host = url.host.lower()
    if is_loopback_host(host) or _is_excluded(host, url.port, _variable(environment, "NO_PROXY")):
        return ""
    return _variable(environment, f"{url.scheme.upper()}_PROXY") or _variable(environment, "ALL_PROXY")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After (RFC 9110 section 10.2.3): seconds, or a date that is measured against the answer's own."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return float(min(int(text), 1 << 20)) if len(text) < 10 else float(1 << 20)
    try:
        wait = parsedate_to_datetime(text) - parsedate_to_datetime(headers.get("Date", ""))
    except (TypeError, ValueError):
        return None
    return max(0.0, wait.total_seconds())


def _variable(environment: Mapping[str, str], name: str) -> str:
    return (environment.get(name.lower()) or environment.get(name) or "").strip()


def _is_excluded(host: str, port: int | None, text: str) -> bool:
    return any(_matches(host, port, item.strip().lower()) for item in text.split(",") if item.strip())


def _matches(host: str, port: int | None, item: str) -> bool:
    if item == "*":
        return True
    if "/" in item:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(item, strict=False)
        except ValueError:
            return False
    name, colon, number = item.rpartition(":")
    if colon and number.isdecimal() and not name.endswith(":"):
        if port != int(number):
            return False
        item = name
    item = item.strip("[]").removeprefix("*").removeprefix(".")
    return host == item or host.endswith(f".{item}")


class RoutingTransport(httpx2.BaseTransport):
    """Sends each request directly or through the environment's proxy for it."""

    def __init__(self, environment: Mapping[str, str], context: ssl.SSLContext) -> None:
        self._environment = environment
        self._context = context
        self._ways: dict[str, httpx2.HTTPTransport] = {
            "": httpx2.HTTPTransport(verify=context, trust_env=False)
        }
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
            if (proxy := _variable(environment, name)) and proxy not in self._ways:
                self._ways[proxy] = self._way(name, proxy)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request on its way."""
        return self._ways[proxy_for(request.url, self._environment)].handle_request(request)

    def close(self) -> None:
        """Close all connections."""
        for way in self._ways.values():
            way.close()

    def _way(self, name: str, proxy: str) -> httpx2.HTTPTransport:
        # The address is not repeated in messages: it may hold a password.
        url = proxy if "://" in proxy else f"http://{proxy}"
        try:
            parsed = httpx2.URL(url)
            if parsed.scheme not in {"http", "https"} or not parsed.host:
                raise ToolError(f"{name} is not the address of an HTTP proxy", hint=_PROXY_HINT)
            return httpx2.HTTPTransport(verify=self._context, proxy=httpx2.Proxy(url), trust_env=False)
        except (ValueError, httpx2.InvalidURL) as error:
            raise ToolError(f"{name} is not the address of an HTTP proxy", hint=_PROXY_HINT) from error

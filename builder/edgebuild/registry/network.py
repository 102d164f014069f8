"""What the environment says about the way to a registry: authorities that are trusted, and proxies."""

import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path

import httpx

from edgebuild.errors import RegistryError, UsageError

# Where Docker and podman look for the authority of one registry.
_CERTIFICATE_FOLDERS = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
_PROXY_HINT = "write it as http://HOST:PORT or https://HOST:PORT, or unset it"


def tls_context(environment: Mapping[str, str], registry: str) -> ssl.SSLContext:
    """Trust what SSL_CERT_FILE or SSL_CERT_DIR name, else the system's authorities, and the registry's own in any case.

    Raises:
        RegistryError: A certificate file cannot be read.
    """
    context = (
        ssl.create_default_context()
        if _has_system_authorities()
        else httpx.create_ssl_context(trust_env=False)
    )
    named_file, named_folder = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
    own = [path for folder in _CERTIFICATE_FOLDERS for path in sorted((folder / registry).glob("*.crt"))]
    try:
        if named_file or named_folder:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cafile=named_file or None, capath=named_folder or None)
        for path in own:
            context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise RegistryError(
            f"trusted certificates cannot be read from {named_file or named_folder or own}: {error}",
            hint="SSL_CERT_FILE names a file of PEM certificates",
        ) from error
    return context


def _has_system_authorities() -> bool:
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.openssl_cafile), Path(paths.openssl_capath)
    return file.is_file() or (folder.is_dir() and any(folder.iterdir()))


def proxy_for(url: httpx.URL, environment: Mapping[str, str]) -> str:
    """Choose the proxy for a URL, "" for none; this machine is always reached directly.

    Reads https_proxy, http_proxy, all_proxy and no_proxy, and the same in upper case; NO_PROXY as in Go: hosts, domains,
    host:port, address ranges, "*".
    """
    host = url.host.lower()
    if is_loopback_host(host) or _is_excluded(host, url.port, _variable(environment, "NO_PROXY")):
        return ""
    return _variable(environment, f"{url.scheme.upper()}_PROXY") or _variable(environment, "ALL_PROXY")


def is_loopback_host(host: str) -> bool:
    """Say whether a host, without port and brackets, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


class RoutingTransport(httpx.BaseTransport):
    """Sends each request directly or through the environment's proxy for it."""

    def __init__(self, environment: Mapping[str, str], context: ssl.SSLContext) -> None:
        self._environment = environment
        self._context = context
        self._ways: dict[str, httpx.HTTPTransport] = {
            "": httpx.HTTPTransport(verify=context, trust_env=False)
        }
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
            if (proxy := _variable(environment, name)) and proxy not in self._ways:
                self._ways[proxy] = self._way(name, proxy)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on its way."""
        return self._ways[proxy_for(request.url, self._environment)].handle_request(request)

    def close(self) -> None:
        """Close all connections."""
        for way in self._ways.values():
            way.close()

    def _way(self, name: str, proxy: str) -> httpx.HTTPTransport:
        # The address is not repeated in messages: it may hold a password.
        url = proxy if "://" in proxy else f"http://{proxy}"
        try:
            parsed = httpx.URL(url)
            if parsed.scheme not in {"http", "https"} or not parsed.host:
                raise UsageError(f"{name} is not the address of an HTTP proxy", hint=_PROXY_HINT)
            return httpx.HTTPTransport(verify=self._context, proxy=httpx.Proxy(url), trust_env=False)
        except (ValueError, httpx.InvalidURL) as error:
            raise UsageError(f"{name} is not the address of an HTTP proxy", hint=_PROXY_HINT) from error

"""Certificates, proxies and hosts."""

import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgebuild.errors import RegistryError, ToolError
from edgebuild.network import is_loopback_host, proxy_for
from edgebuild.oci.reference import Reference
from edgebuild.progress import SilentProgress
from edgebuild.registry.client import open_client
from edgebuild.registry.transport import Transport
from tests.unit.registry.conftest import FAST
from tests.unit.registry.double import Double

PROXIES = {"HTTPS_PROXY": "http://secure:1", "http_proxy": "http://plain:2"}


@pytest.mark.parametrize(
    ("url", "no_proxy", "expected"),
    [
        ("https://r.example/v2/", "", "http://secure:1"),
        ("http://r.example/v2/", "", "http://plain:2"),
        ("https://r.example/v2/", "example", ""),
        ("https://r.example/v2/", ".example", ""),
        ("https://r.example/v2/", "*.example", ""),
        ("https://r.example/v2/", "xample", "http://secure:1"),
        ("https://r.example/v2/", " other , R.EXAMPLE ", ""),
        ("https://r.example:5000/v2/", "r.example:5000", ""),
        ("https://r.example:5001/v2/", "r.example:5000", "http://secure:1"),
        ("https://10.1.2.3/v2/", "10.0.0.0/8", ""),
        ("https://11.1.2.3/v2/", "10.0.0.0/8", "http://secure:1"),
        ("https://r.example/v2/", "10.0.0.0/8", "http://secure:1"),
        ("https://r.example/v2/", "*", ""),
        ("http://127.0.0.1:5000/v2/", "", ""),
        ("http://localhost:5000/v2/", "", ""),
        ("http://[::1]:5000/v2/", "", ""),
    ],
)
def test_choice_of_a_proxy(url: str, no_proxy: str, expected: str) -> None:
    assert proxy_for(httpx2.URL(url), {**PROXIES, "NO_PROXY": no_proxy}) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("localhost.evil.example", False),
        ("128.0.0.1", False),
        ("127.0.0.1.nip.example", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback_host(host) is expected


@pytest.mark.parametrize(
    ("registry", "base"),
    [
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/"),
        ("[::1]:5000", "http://[::1]:5000/v2/"),
        ("localhost", "http://localhost/v2/"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2/"),
        ("docker.io", "https://registry-1.docker.io/v2/"),
    ],
)
def test_scheme(registry: str, base: str) -> None:
    with Transport(
        registry, "a", actions="pull", environment={}, progress=SilentProgress(), limits=FAST
    ) as transport:
        assert transport.base == base


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/v2/a/x?y=1", "https://r.example:5000/v2/a/x?y=1"),
        ("http://r.example:5000/x", "https://r.example:5000/x"),
        ("http://r.example/x", "https://r.example:5000/x"),
        ("https://cdn.example/x", "https://cdn.example/x"),
        ("http://cdn.example/x", "http://cdn.example/x"),
    ],
)
def test_location_of_a_registry_that_does_not_know_its_scheme(location: str, expected: str) -> None:
    with Transport(
        "r.example:5000", "a", actions="pull", environment={}, progress=SilentProgress(), limits=FAST
    ) as transport:
        assert str(transport.target(httpx2.URL("https://r.example:5000/v2/a/y"), location)) == expected


class _TlsHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    paths[0].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


@pytest.fixture
def tls_port(certificate: tuple[Path, Path]) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _TlsHandler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def read_over_tls(port: int, environment: dict[str, str]) -> bytes | None:
    """Loopback registries are asked over plain HTTP, which redirects: so TLS is reached from there."""
    from tests.unit.registry.double import running_double

    with running_double() as double:
        double.fault("GET", "", times=-1, status=307, headers={"Location": f"https://127.0.0.1:{port}/x"})
        reference = Reference.parse(f"{double.host}/a:1")
        with open_client(
            reference, environment=environment, progress=SilentProgress(), limits=FAST
        ) as client:
            return client.get_manifest("1")


def test_unknown_authority(tls_port: int) -> None:
    with pytest.raises(RegistryError, match="its certificate is not trusted: self-signed") as error:
        read_over_tls(tls_port, {})
    assert "SSL_CERT_FILE" in error.value.hint


def test_authority_from_the_environment(tls_port: int, certificate: tuple[Path, Path]) -> None:
    assert read_over_tls(tls_port, {"SSL_CERT_FILE": str(certificate[0])}) == b"{}"


def test_authority_that_cannot_be_read(tls_port: int, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"trusted certificates cannot be read from .*nothing"):
        read_over_tls(tls_port, {"SSL_CERT_FILE": str(tmp_path / "nothing")})


def test_server_that_does_not_speak_tls(double: Double) -> None:
    with pytest.raises(RegistryError, match="it does not speak TLS") as error:
        read_over_tls(double.port, {})
    assert "plain HTTP is for registries on this machine only" in error.value.hint


def test_host_that_does_not_exist() -> None:
    reference = Reference.parse("registry.invalid/a:1")
    with (
        open_client(reference, environment={}, progress=SilentProgress(), limits=FAST) as client,
        pytest.raises(RegistryError, match=r"there is no such host|cannot connect"),
    ):
        client.manifest("1")

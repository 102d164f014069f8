"""Who may use gRPC: keys, TLS and mutual TLS of a real edgeserve process, the same as for HTTP."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from edgeserve.access.keys import make_key
from edgeserve.grpc.edge.v1 import inference_pb2 as pb
from tests.support.asking import answers
from tests.support.certificates import Authority, Issued, client_context
from tests.support.grpc_client import SERVICE, Client, client, refusal
from tests.support.llama import GRPC, ServerProcess, running_server

REQUEST = pb.GenerateRequest(prompt="go", max_tokens=1)
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


def _mount(folder: Path, authority: Authority, *, is_mutual: bool) -> dict[str, Any]:
    """Write a folder of certificates and return the settings that name it."""
    mounted = folder / "tls"
    mounted.mkdir(exist_ok=True)
    authority.issue("device", is_server=True).write(mounted)
    if is_mutual:
        (mounted / "ca.crt").write_bytes(authority.certificate)
    return {**GRPC, "server.access.tls_folder": str(mounted)}


def _keys(folder: Path) -> tuple[str, dict[str, Any]]:
    key, line = make_key("phone")
    (folder / "keys").write_text(line + "\n")
    return key, {"server.access.keys_file": str(folder / "keys")}


@contextlib.contextmanager
def _secure(server: ServerProcess, authority: Authority, shown: Issued | None = None) -> Iterator[Client]:
    identity = (shown.key, shown.certificate) if shown else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.certificate, *identity)
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(server.grpc_target, credentials, options=options) as channel:
        yield Client(channel)


@pytest.fixture(scope="module")
def mutual(
    llama_host: Path, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, Authority]]:
    folder, authority = tmp_path_factory.mktemp("mutual"), Authority()
    with running_server(
        llama_host, folder, scripted_model, _mount(folder, authority, is_mutual=True)
    ) as server:
        yield server, authority


def test_calls_need_a_key_where_there_are_keys(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    key, settings = _keys(tmp_path)
    with (
        running_server(llama_host, tmp_path, scripted_model, {**GRPC, **settings}) as server,
        client(server.grpc_target) as opened,
    ):
        for metadata, code in (
            ((), "missing_api_key"),
            ((("authorization", "Bearer x"),), "invalid_api_key"),
        ):
            call = partial(opened.stream, REQUEST, metadata=metadata)
            status, _, told = refusal(lambda call=call: list(call()))  # type: ignore[misc]
            assert (status, told["edge-error-code"]) == (UNAUTHENTICATED, code)
        assert refusal(opened.model)[0] is UNAUTHENTICATED
        assert refusal(lambda: opened.raw("Nonsense", b""))[0] is UNAUTHENTICATED
        reflected = ProtoReflectionDescriptorDatabase(opened.channel)
        assert refusal(reflected.get_services)[0] is UNAUTHENTICATED
        assert opened.health() == health_pb2.HealthCheckResponse.SERVING
        parts = list(opened.stream(REQUEST, metadata=(("authorization", f"Bearer {key}"),)))
        assert parts[-1].usage.output_tokens == 1
        server.wait_for(f"path=/{SERVICE}/Generate client=key:phone status=200")
        server.wait_for(f"path=/{SERVICE}/Generate client=anonymous status=401 outcome=invalid_api_key")
        assert key not in server.log


def test_tls(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    authority = Authority()
    settings = _mount(tmp_path, authority, is_mutual=False)
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        with _secure(server, authority) as opened:
            assert opened.answer(prompt="go", max_tokens=2, temperature=0.0)[0] == "Hello wor"
        with client(server.grpc_target) as plain:
            assert refusal(plain.model)[0] is grpc.StatusCode.UNAVAILABLE
        with _secure(server, Authority()) as stranger:
            assert refusal(stranger.model)[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("name", "alternatives", "expected"),
    [
        ("line 4", [], r"\"cert:line 4\""),
        ("line4", [x509.DNSName("a.example")], "cert:line4"),
        (None, [x509.DNSName("a.example"), x509.UniformResourceIdentifier("urn:dev:7")], "cert:urn:dev:7"),
        (None, [x509.RFC822Name("a@b.example"), x509.DNSName("a.example")], "cert:a.example"),
        ("two\nlines", [], r"\"cert:two\?lines\""),
    ],
)
def test_a_certificates_name_is_the_client(
    mutual: tuple[ServerProcess, Authority],
    name: str | None,
    alternatives: list[x509.GeneralName],
    expected: str,
) -> None:
    server, authority = mutual
    with _secure(server, authority, authority.issue(name, alternatives=alternatives)) as opened:
        assert list(opened.stream(REQUEST))[-1].usage.output_tokens == 1
    server.wait_for(f"path=/{SERVICE}/Generate client={expected} status=200")


def test_a_certificate_without_names_is_the_same_client_over_http(
    mutual: tuple[ServerProcess, Authority], tmp_path: Path
) -> None:
    server, authority = mutual
    for _ in range(3):
        shown = authority.issue(None)
        serial = x509.load_pem_x509_certificate(shown.certificate).serial_number
        written = f"{serial:x}".upper()
        written = written.zfill(len(written) + len(written) % 2)
        with _secure(server, authority, shown) as opened:
            assert opened.model().slots == 2
        assert answers(server, context=client_context(authority, tmp_path, shown))
        server.wait_for(f'interface=grpc .*client="cert:serial {written}" status=200')
        server.wait_for(f'interface=http .*client="cert:serial {written}" status=200')


def test_certificates_that_are_not_accepted(mutual: tuple[ServerProcess, Authority]) -> None:
    server, authority = mutual
    for shown in (None, Authority().issue("line 4"), authority.issue("line 4", is_expired=True)):
        with _secure(server, authority, shown) as opened:
            assert refusal(opened.health)[0] is grpc.StatusCode.UNAVAILABLE


def test_certificates_change_while_it_serves(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    settings = _mount(tmp_path, old, is_mutual=True)
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        with _secure(server, old, old.issue("line 4")) as opened:
            assert opened.model().slots == 2
            _mount(tmp_path, new, is_mutual=True)
            server.wait_for("tls-reloaded")
            # What is open goes on.
            assert opened.model().slots == 2
        with _secure(server, new, old.issue("line 4")) as opened:
            assert refusal(opened.model)[0] is grpc.StatusCode.UNAVAILABLE
        with _secure(server, new, new.issue("line 4")) as opened:
            assert opened.model().slots == 2


def test_a_key_where_a_certificate_would_do_for_http(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    authority = Authority()
    key, settings = _keys(tmp_path)
    settings |= _mount(tmp_path, authority, is_mutual=True)
    shown = authority.issue("line 4")
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        assert answers(server, context=client_context(authority, tmp_path, shown))
        with _secure(server, authority, shown) as opened:
            assert refusal(opened.model)[0] is UNAUTHENTICATED
            parts = list(opened.stream(REQUEST, metadata=(("authorization", f"Bearer {key}"),)))
            assert parts[-1].usage.output_tokens == 1


def test_what_grpc_cannot_keep_is_refused_at_the_start(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    settings = {**GRPC, "server.access.tls_minimum": "1.3"}
    with running_server(llama_host, tmp_path, scripted_model, settings, wait_ready=False) as server:
        assert server.wait() == 3
        assert "server.access.tls_minimum: gRPC speaks TLS 1.2 too" in server.log

"""A real edgeserve process behind keys, TLS and mutual TLS."""

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from openai import OpenAI

from edgeserve.access.keys import make_key
from tests.support.asking import COMPLETION, GO, answers, ask, ask_on, connect
from tests.support.certificates import Authority, Issued, client_context
from tests.support.llama import MODEL_NAME, ServerProcess, running_server
from tests.support.openai_client import openai_client

_FOREIGN = "foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A server's authority and files."""

    authority: Authority
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        return {"server.access.tls_folder": str(self.folder)}

    def client(self, shown: Issued | None = None, **more: Any) -> ssl.SSLContext:
        return client_context(self.authority, self.folder.parent, shown, **more)


def _site(folder: Path, *, is_mutual: bool = False) -> Site:
    authority, mounted = Authority(), folder / "tls"
    mounted.mkdir()
    authority.issue("device", is_server=True).write(mounted)
    if is_mutual:
        (mounted / "ca.crt").write_bytes(authority.certificate)
    return Site(authority=authority, folder=mounted)


def _keys(folder: Path, *names: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    made = [make_key(name) for name in names]
    (folder / "keys").write_text("".join(line + "\n" for _, line in made))
    return {"server.access.keys_file": str(folder / "keys")}, tuple(key for key, _ in made)


def _health(server: ServerProcess) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "edgeserve", "health"],
        env=server.environment | {"EDGE_PORT": str(server.port)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture(scope="module")
def keyed(
    llama_host: Path, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, tuple[str, ...]]]:
    folder = tmp_path_factory.mktemp("keyed")
    settings, keys = _keys(folder, "phone", "shelf")
    with running_server(llama_host, folder, scripted_model, settings) as server:
        yield server, keys


@pytest.fixture(scope="module")
def mutual(
    llama_host: Path, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, Site]]:
    folder = tmp_path_factory.mktemp("mutual")
    site = _site(folder, is_mutual=True)
    with running_server(llama_host, folder, scripted_model, site.settings) as server:
        yield server, site


def test_keys_open_the_door(keyed: tuple[ServerProcess, tuple[str, ...]]) -> None:
    server, (phone, shelf) = keyed
    server.wait_for(r"warning access tls=off keys=2 certificates=off note=.*in the clear")
    for path, body in ((COMPLETION, GO), ("/v1/models", None), ("/nowhere", None)):
        answer = ask(server, path, body)
        assert (answer.status, answer.code) == (401, "missing_api_key")
        assert answer.headers["www-authenticate"] == 'Bearer realm="edgeserve"'
    wrong = ask(server, "/v1/models", headers={"Authorization": f"Bearer {make_key('phone')[0]}"})
    assert (wrong.status, wrong.code) == (401, "invalid_api_key")
    assert wrong.headers["www-authenticate"] == 'Bearer realm="edgeserve", error="invalid_token"'
    assert answers(server, key=phone)
    assert answers(server, key=shelf)
    server.wait_for("client=key:shelf status=200")
    assert phone not in server.log


def test_probes_need_no_key(keyed: tuple[ServerProcess, tuple[str, ...]]) -> None:
    server, _ = keyed
    assert ask(server, "/livez").status == ask(server, "/readyz").status == 200
    assert _health(server).returncode == 0


def test_the_official_client_with_a_key(keyed: tuple[ServerProcess, tuple[str, ...]]) -> None:
    server, (phone, _) = keyed
    with openai_client(server, key=phone) as client:
        assert client.completions.create(model=MODEL_NAME, prompt="go").choices[0].text.startswith("Hello")
    with openai_client(server, key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")


def test_a_large_body_without_a_key_is_not_read(keyed: tuple[ServerProcess, tuple[str, ...]]) -> None:
    server, _ = keyed
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer


def test_a_key_can_be_added_and_taken_away(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    settings, (old,) = _keys(tmp_path, "phone")
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        connection = connect(server)
        bearer = {"Authorization": f"Bearer {old}"}
        assert ask_on(connection, "/v1/models", headers=bearer).status == 200
        new, line = make_key("phone")
        (tmp_path / "keys").write_text(line)
        server.wait_for("keys-reloaded reason=changed", 10)
        assert ask_on(connection, "/v1/models", headers=bearer).code == "invalid_api_key"
        assert answers(server, key=new)
        (tmp_path / "keys").write_text("phone edge_oops")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(r"error keys-not-reloaded problem=.*keys:1: not `ID sha256:HEX`", 10)
        assert answers(server, key=new)
        connection.close()
        assert server.terminate() == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls(llama_host: Path, scripted_model: Path, tmp_path: Path, version: ssl.TLSVersion) -> None:
    site = _site(tmp_path)
    with running_server(llama_host, tmp_path, scripted_model, site.settings) as server:
        server.wait_for(r'warning access tls=1\.2\+ keys=off certificates=off note="anyone')
        context = site.client(version=version)
        assert answers(server, context=context)
        with OpenAI(
            base_url=f"https://127.0.0.1:{server.port}/v1",
            api_key="unused",
            http_client=openai.DefaultHttpxClient(verify=context),
        ) as client:
            parts = client.completions.create(model=MODEL_NAME, prompt="go", stream=True)
            assert "".join(part.choices[0].text for part in parts) == "Hello world€ END of story"
        assert _health(server).returncode == 0
        assert server.terminate() == 0


def test_old_versions_are_refused(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    site = _site(tmp_path)
    settings = site.settings | {"server.access.tls_minimum": "1.3"}
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        with pytest.raises(ssl.SSLError):
            ask(server, "/livez", context=site.client(version=ssl.TLSVersion.TLSv1_2))
        server.wait_for("warning refused reason=UNSUPPORTED_PROTOCOL address=127.0.0.1")
        assert answers(server, context=site.client())


def test_who_has_no_certificate_of_ours_stays_out(mutual: tuple[ServerProcess, Site]) -> None:
    server, site = mutual
    server.wait_for(r"info access tls=1\.2\+ keys=off certificates=required")
    foreign = Authority(_FOREIGN)
    shown = {
        "none": None,
        "expired": site.authority.issue("robot", is_expired=True),
        "foreign": foreign.issue("robot"),
        # Of the same authority and made for servers: a server that was broken into is no client.
        "server": site.authority.issue("robot", is_server=True),
    }
    for name, certificate in shown.items():
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask(server, "/livez", context=site.client(certificate, version=version))
            assert answers(server, context=site.client(site.authority.issue("robot"))), name
    for reason in ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "certificate has expired"):
        server.wait_for(f'warning refused reason="?{reason}')
    assert _health(server).returncode == 0


def test_a_client_goes_by_the_name_in_its_certificate(mutual: tuple[ServerProcess, Site]) -> None:
    server, site = mutual
    spiffe = x509.UniformResourceIdentifier("spiffe://site/robot")
    for issued, name in (
        (site.authority.issue("robot 7"), '"cert:robot 7"'),
        (
            site.authority.issue(None, alternatives=[x509.DNSName("robot.local"), spiffe]),
            "cert:spiffe://site/robot",
        ),
        (site.authority.issue(None, alternatives=[x509.DNSName("robot.local")]), "cert:robot.local"),
        (site.authority.issue("key:phone\nstatus=200"), '"cert:key:phone\\?status=200"'),
        (site.authority.issue(None), '"cert:serial [0-9A-F]+"'),
    ):
        assert answers(server, context=site.client(issued))
        server.wait_for(f"request .*client={name} status=200")


def test_a_certificate_or_a_key(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    site = _site(tmp_path, is_mutual=True)
    settings, (key,) = _keys(tmp_path, "phone")
    certified = site.client(site.authority.issue("robot"))
    with running_server(llama_host, tmp_path, scripted_model, settings | site.settings) as server:
        server.wait_for(r"info access tls=1\.2\+ keys=1 certificates=optional")
        assert answers(server, context=certified)
        assert answers(server, context=site.client(), key=key)
        assert answers(server, context=certified, key=key)
        assert ask(server, "/v1/models", context=site.client()).code == "missing_api_key"
        assert (
            ask(server, "/v1/models", context=certified, headers={"Authorization": "Bearer x"}).status == 401
        )
        assert ask(server, "/readyz", context=site.client()).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(server, "/readyz", context=site.client(Authority(_FOREIGN).issue("robot")))
        clients = [line.partition(" client=")[2].split()[0] for line in server.lines if " client=" in line]
        assert clients == ["cert:robot", "key:phone", "key:phone", "anonymous", "anonymous"]


def test_both_may_be_demanded(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    site = _site(tmp_path, is_mutual=True)
    settings, (key,) = _keys(tmp_path, "phone")
    settings |= site.settings | {"server.access.require_certificate": True, "server.access.require_key": True}
    certified = site.client(site.authority.issue("robot"))
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        server.wait_for(r"info access tls=1\.2\+ keys=1 certificates=required")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(server, "/readyz", context=site.client(), headers={"Authorization": f"Bearer {key}"})
        assert ask(server, "/v1/models", context=certified).code == "missing_api_key"
        assert answers(server, context=certified, key=key)


def _encrypted() -> bytes:
    key = Authority().issue("x").key
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"words"),
    )


@pytest.mark.parametrize(
    ("settings", "files", "problem"),
    [
        ({"require_tls": True, "tls_folder": ""}, {}, "require_tls is on, and there is no TLS: mount a folder at /run/edge/tls"),
        ({"require_certificate": True, "tls_folder": ""}, {}, "require_certificate is on, and there is no TLS"),
        ({"require_certificate": True}, {}, "ca.crt: there is no such file"),
        ({"require_key": True, "keys_file": ""}, {}, "require_key is on, and there are no keys"),
        ({}, {"tls.key": None}, "tls.key: there is no such file"),
        ({}, {"tls.crt": None}, "tls.crt: there is no such file"),
        ({}, {"tls.crt": b"", "tls.key": b""}, "not a certificate and its private key in PEM"),
        ({}, {"tls.crt": b"nonsense"}, "not a certificate and its private key in PEM"),
        ({}, {"tls.key": Authority().issue("other").key}, "is not the key of the certificate"),
        ({}, {"tls.key": _encrypted()}, "is encrypted"),
        ({}, {"ca.crt": b"nonsense"}, "ca.crt: not certificates in PEM"),
        ({"tls_folder": "/nonexistent"}, {}, "/nonexistent/tls.crt: there is no such file"),
        ({"keys_file": "/nonexistent/keys"}, {}, "/nonexistent/keys: there is no such file"),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_has_its_own_exit_code(
    llama_host: Path,
    scripted_model: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    files: dict[str, bytes | None],
    problem: str,
) -> None:
    site = _site(tmp_path)
    for name, data in files.items():
        if data is None:
            (site.folder / name).unlink()
        else:
            (site.folder / name).write_bytes(data)
    overrides = site.settings | {f"server.access.{name}": value for name, value in settings.items()}
    with running_server(llama_host, tmp_path, scripted_model, overrides, wait_ready=False) as server:
        assert server.wait() == 6
        assert len(server.lines) == 1
        assert " error access problem=" in server.log
        assert problem in server.log


def test_who_starts_the_server_has_the_last_word(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    demands = {f"server.access.require_{what}": True for what in ("tls", "certificate", "key")}
    environment = {f"EDGE_REQUIRE_{what}": "false" for what in ("TLS", "CERTIFICATE", "KEY")}
    with running_server(llama_host, tmp_path, scripted_model, demands, environment=environment) as server:
        assert answers(server)
        assert server.terminate() == 0


def test_a_private_key_is_never_logged(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    site = _site(tmp_path, is_mutual=True)
    with running_server(llama_host, tmp_path, scripted_model, site.settings) as server:
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("tls-reloaded reason=asked")
        secret = (site.folder / "tls.key").read_text().splitlines()[1]
        assert secret not in server.log
    assert os.environ.get("EDGE_TLS_FOLDER") is None

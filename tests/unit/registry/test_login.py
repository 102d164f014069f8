"""How we log in: files, helpers, token servers, and tokens that end in the middle."""

import base64
import json
import time
from pathlib import Path

import pytest

from edgebuild.errors import RegistryError
from edgebuild.oci.blob import Blob
from edgebuild.oci.digest import Digest
from edgebuild.registry.auth import Challenge, parse_challenges
from edgebuild.registry.credentials import Credential, find_credential
from tests.unit.registry.conftest import MakeDouble, OpenSink, Recorder
from tests.unit.registry.double import Double

ONE = Blob.of_bytes(b"x")


def write_config(folder: Path, document: object, name: str = "config.json") -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(document))
    return {"DOCKER_CONFIG": str(folder), "PATH": f"{folder}:/usr/bin:/bin"}


def login_of(double: Double, *, password: str = "") -> dict[str, object]:
    pair = f"{double.username}:{password or double.password}"
    return {"auths": {double.host: {"auth": base64.b64encode(pair.encode()).decode()}}}


def push(sink_of: OpenSink, double: Double, environment: dict[str, str]) -> None:
    sink_of(double, environment=environment).put_blob(ONE, digest=Digest.of(b"x"), title="m")


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_right_login(make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path, auth: str) -> None:
    double = make_double(auth=auth)
    push(sink_of, double, write_config(tmp_path, login_of(double)))
    assert double.state.blobs


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_no_login(make_double: MakeDouble, sink_of: OpenSink, auth: str) -> None:
    double = make_double(auth=auth)
    with pytest.raises(RegistryError, match=r"401 (?i:UNAUTHORIZED)") as error:
        push(sink_of, double, {})
    assert error.value.hint == f"log in first: docker login {double.host}"


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_wrong_password(
    make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path, progress: Recorder, auth: str
) -> None:
    double = make_double(auth=auth)
    environment = write_config(tmp_path, login_of(double, password="not-the-one"))
    with pytest.raises(RegistryError, match=r"401 (?i:UNAUTHORIZED)") as error:
        push(sink_of, double, environment)
    assert "was refused; log in again: docker login" in error.value.hint
    assert "not-the-one" not in f"{error.value!r} {error.value.message} {error.value.hint} {progress.notes}"
    assert len(double.requests) <= 4  # a wrong password is not tried again: accounts get locked


def test_token_request(make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path) -> None:
    double = make_double(auth="bearer")
    sink = sink_of(double, environment=write_config(tmp_path, login_of(double)), mount_from="acme/other")
    sink.put_blob(ONE, digest=None, title="m")
    assert double.state.forms[0] == {
        "service": ["double, inc"],
        "scope": ["repository:acme/llm:pull,push", "repository:acme/other:pull", "repository:acme/llm:pull"],
    }


def test_identity_token(make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path) -> None:
    double = make_double(auth="bearer")
    push(sink_of, double, write_config(tmp_path, {"auths": {double.host: {"identitytoken": "refresh-me"}}}))
    form = double.state.forms[0]
    assert form["grant_type"] == ["refresh_token"]
    assert form["scope"] == ["repository:acme/llm:pull,push repository:acme/llm:pull"]


def test_tokens_end_in_the_middle_of_a_push(
    make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path, blob: Blob, progress: Recorder
) -> None:
    double = make_double(auth="bearer")
    double.uses_per_token = 2
    sink = sink_of(double, environment=write_config(tmp_path, login_of(double)))
    digest = sink.put_blob(blob, digest=None, title="m")
    assert double.state.blobs["acme/llm", str(digest)] == blob.read()
    assert len(double.state.forms) == 4  # 7 requests, 2 a token
    assert progress.advanced["push m"] == blob.size_bytes


def test_tokens_that_never_hold(make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path) -> None:
    double = make_double(auth="bearer")
    double.uses_per_token = 0
    with pytest.raises(RegistryError, match=r"401 (?i:UNAUTHORIZED)"):
        push(sink_of, double, write_config(tmp_path, login_of(double)))


def test_token_is_renewed_before_its_end(make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path) -> None:
    double = make_double(auth="bearer")
    sink = sink_of(double, environment=write_config(tmp_path, login_of(double)))
    double.state.tokens["short"] = 100
    double.fault("GET", "/token", status=200, body=b'{"token":"short","expires_in":1}')
    sink.put_blob(ONE, digest=Digest.of(b"x"), title="m")
    time.sleep(0.9)
    refused = [r for r in double.requests if r.status == 401]
    sink.put_blob(ONE, digest=None, title="m")
    assert [r for r in double.requests if r.status == 401] == refused


@pytest.mark.parametrize("body", [b"", b"[]", b'{"token":7}', b'{"token":"a\\nb"}', b"{}", b"[" * 100_000])
def test_token_server_talks_nonsense(make_double: MakeDouble, sink_of: OpenSink, body: bytes) -> None:
    double = make_double(auth="bearer")
    double.fault("GET", "/token", times=-1, status=200, body=body)
    with pytest.raises(RegistryError, match=r"GET a token at 127\.0\.0\.1: the answer holds no token"):
        push(sink_of, double, {})


def test_token_server_fails_for_a_while(make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path) -> None:
    double = make_double(auth="bearer")
    double.fault("GET", "/token", times=2, status=503)
    push(sink_of, double, write_config(tmp_path, login_of(double)))
    assert double.state.blobs


def test_token_server_without_tls_gets_no_password(
    make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path
) -> None:
    double = make_double()
    realm = 'Bearer realm="http://198.51.100.7/token"'
    double.fault("HEAD", "", times=-1, status=401, headers={"WWW-Authenticate": realm})
    with pytest.raises(RegistryError, match="which is not HTTPS"):
        push(sink_of, double, write_config(tmp_path, login_of(double)))


def test_token_server_that_redirects_gets_no_further(
    make_double: MakeDouble, sink_of: OpenSink, tmp_path: Path
) -> None:
    double, thief = make_double(auth="bearer"), make_double()
    double.fault("GET", "/token", times=-1, status=307, headers={"Location": f"http://{thief.host}/token"})
    with pytest.raises(RegistryError, match="307"):
        push(sink_of, double, write_config(tmp_path, login_of(double)))
    assert thief.requests == []


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', [Challenge(scheme="basic", realm="x")]),
        ("basic", [Challenge(scheme="basic")]),
        ("Negotiate", []),
        (
            'Bearer realm="https://a/b?c=d",service="s, t",scope="repository:r:pull,push"',
            [
                Challenge(
                    scheme="bearer", realm="https://a/b?c=d", service="s, t", scope="repository:r:pull,push"
                )
            ],
        ),
        (
            'BEARER realm=plain, Basic realm="q\\"u"',
            [Challenge(scheme="bearer", realm="plain"), Challenge(scheme="basic", realm='q"u')],
        ),
        ("", []),
    ],
)
def test_challenges(header: str, expected: list[Challenge]) -> None:
    assert list(parse_challenges([header])) == expected


# Files and helpers


def entry(name: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:p".encode()).decode()}


@pytest.mark.parametrize(
    ("registry", "repository", "name"),
    [
        ("r.example:5000", "acme/llm", "path"),
        ("r.example:5000", "acme/llmx", "team"),
        ("r.example:5000", "other/llm", "host"),
        ("old.example", "a", "old"),
        ("docker.io", "library/x", "hub"),
        ("r.example", "acme/llm", None),
        ("evil-r.example:5000", "acme/llm", None),
    ],
)
def test_longest_match(tmp_path: Path, registry: str, repository: str, name: str | None) -> None:
    environment = write_config(
        tmp_path,
        {
            "auths": {
                "r.example:5000": entry("host"),
                "r.example:5000/acme": entry("team"),
                "r.example:5000/acme/llm": entry("path"),
                "https://old.example/v1/": entry("old"),
                "https://index.docker.io/v1/": entry("hub"),
            }
        },
    )
    found = find_credential(registry, repository, environment)
    assert (found.username if found else None) == name


def test_order_of_files(tmp_path: Path) -> None:
    auths = {"auths": {"r.example": entry("docker")}}
    write_config(tmp_path / ".docker", auths)
    write_config(tmp_path / ".config" / "containers", {"auths": {"r.example": entry("podman")}}, "auth.json")
    environment = {"HOME": str(tmp_path)}
    found = find_credential("r.example", "x", environment)
    assert found is not None
    assert found.username == "docker"
    write_config(tmp_path / ".docker", {"auths": {"r.example": {}}})
    found = find_credential("r.example", "x", environment)
    assert found is not None
    assert found.username == "podman"
    write_config(tmp_path, {"auths": {"r.example": entry("named")}}, "auth.json")
    found = find_credential(
        "r.example", "x", {**environment, "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}
    )
    assert found is not None
    assert found.username == "named"
    assert find_credential("r.example", "x", {}) is None


def write_helper(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
def test_helper(tmp_path: Path, key: str) -> None:
    value = "tests" if key == "credsStore" else {"r.example": "tests"}
    environment = write_config(tmp_path, {key: value, "auths": {"r.example": entry("stored")}})
    write_helper(
        tmp_path,
        "tests",
        'read server; [ "$1" = get ] && echo "{\\"Username\\":\\"u\\",\\"Secret\\":\\"for $server\\"}"',
    )
    found = find_credential("r.example", "x", environment)
    assert found == Credential(username="u", password="for r.example", source="docker-credential-tests")
    assert "for r.example" not in repr(found)


def test_helper_gives_an_identity_token(tmp_path: Path) -> None:
    environment = write_config(tmp_path, {"credsStore": "tests"})
    write_helper(tmp_path, "tests", """echo '{"Username":"<token>","Secret":"t"}'""")
    found = find_credential("r.example", "x", environment)
    assert found is not None
    assert (found.identity_token, found.username) == ("t", "")


def test_helper_knows_nothing(tmp_path: Path) -> None:
    environment = write_config(tmp_path, {"credsStore": "tests", "auths": {"r.example": entry("stored")}})
    write_helper(tmp_path, "tests", "echo 'credentials not found in native keychain'; exit 1")
    found = find_credential("r.example", "x", environment)
    assert found is not None
    assert found.username == "stored"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo secret-in-stdout; exit 3", "docker-credential-tests failed with exit code 3"),
        ("echo secret-in-stdout", "did not answer with Username and Secret"),
        ('echo \'{"Username":1,"Secret":"secret-in-stdout"}\'', "answered with no text"),
        (None, "docker-credential-tests is not installed"),
    ],
)
def test_helper_fails(tmp_path: Path, script: str | None, message: str) -> None:
    environment = write_config(tmp_path, {"credsStore": "tests"})
    if script is not None:
        write_helper(tmp_path, "tests", script)
    with pytest.raises(RegistryError, match=message) as error:
        find_credential("r.example", "x", environment)
    assert "secret-in-stdout" not in error.value.message + error.value.hint
    assert error.value.hint == "run it by hand: echo r.example | docker-credential-tests get"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"credsStore":"../../bin/sh"}', "names a credential helper that cannot exist"),
        ('{"auths":{"r.example":{"auth":"%%"}}}', "is not base64 of NAME:PASSWORD"),
        ('{"auths":{"r.example":{"auth":"YWJj"}}}', "is not base64 of NAME:PASSWORD"),
    ],
)
def test_broken_file(tmp_path: Path, document: str, message: str) -> None:
    (tmp_path / "config.json").write_text(document)
    with pytest.raises(RegistryError, match=message) as error:
        find_credential("r.example", "x", {"DOCKER_CONFIG": str(tmp_path)})
    assert error.value.hint

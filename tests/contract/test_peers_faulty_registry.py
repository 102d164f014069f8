"""The registry that can fail: strict and readable by real clients without faults, and each fault is what it says."""

import base64
import hashlib
import http.client
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.faulty_registry import (
    Answer,
    BasicLogin,
    Corrupt,
    CutRequest,
    CutResponse,
    FaultyRegistry,
    Hang,
    Inflate,
    TokenLogin,
    WrongDigest,
)
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.support.tiny_image import INDEX, MANIFEST, TinyImage, write_tiny_image

BLOB = bytes(range(256)) * 1000
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"
EMPTY_INDEX = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    registry: FaultyRegistry,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=10)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        content = response.read()
        return Reply(status=response.status, headers=dict(response.headers), body=content)
    finally:
        connection.close()


def upload(registry: FaultyRegistry, repository: str = "r") -> str:
    reply = ask(registry, "POST", f"/v2/{repository}/blobs/uploads/")
    assert reply.status == 202
    return reply.headers["Location"]


def put_manifest(registry: FaultyRegistry, reference: str, content: bytes, media_type: str = INDEX) -> Reply:
    return ask(registry, "PUT", f"/v2/r/manifests/{reference}", content, {"Content-Type": media_type})


def error_code(reply: Reply) -> str:
    code: str = json.loads(reply.body)["errors"][0]["code"]
    return code


@pytest.fixture
def image(tmp_path: Path, busybox_amd64: Path) -> TinyImage:
    return write_tiny_image(tmp_path / "image", programs={"amd64": busybox_amd64})


class TestWithoutFaults:
    @pytest.mark.peers
    @pytest.mark.parametrize("has_referrers_api", [False, True])
    def test_real_clients_push_sign_and_read(
        self,
        tmp_path: Path,
        image: TinyImage,
        crane: Tool,
        oras: Tool,
        cosign2: Tool,
        cosign3: Tool,
        *,
        has_referrers_api: bool,
    ) -> None:
        with FaultyRegistry(tmp_path / "registry", has_referrers_api=has_referrers_api) as registry:
            crane.run("push", image.layout, registry.reference("tiny", "by-crane"))
            oras.run(
                "cp",
                "--from-oci-layout",
                "--to-plain-http",
                f"{image.layout}:latest",
                registry.reference("tiny", "by-oras"),
            )
            crane.run("validate", "--remote", registry.reference("tiny", "by-oras"))
            assert crane.run("digest", registry.reference("tiny", "by-oras")).stdout.strip() == image.digest
            assert crane.run("ls", f"{registry.host}/tiny").stdout.split() == ["by-crane", "by-oras"]
            pinned = f"{registry.host}/tiny@{image.digest}"
            password = {"COSIGN_PASSWORD": ""}
            cosign2.run("generate-key-pair", env=password, cwd=tmp_path)
            offline = ("--use-signing-config=false", "--tlog-upload=false")
            cosign3.run("sign", "--key", tmp_path / "cosign.key", *offline, "--yes", pinned, env=password)
            cosign3.run("verify", "--key", tmp_path / "cosign.pub", "--insecure-ignore-tlog", pinned)
            fallback = image.digest.replace(":", "-")
            assert (fallback in registry.store.tags("tiny")) is not has_referrers_api
            listed = oras.run("discover", "--plain-http", "--format", "json", pinned).stdout
            assert "sigstore.bundle" in listed or not has_referrers_api

    @pytest.mark.peers
    def test_real_clients_get_tokens(self, tmp_path: Path, image: TinyImage, crane: Tool) -> None:
        login = TokenLogin()
        with FaultyRegistry(tmp_path / "registry", login=login) as registry:
            reference = registry.reference("tiny")
            assert crane.run("push", image.layout, reference, check=False).returncode != 0
            account = Registry(
                port=registry.port,
                storage=tmp_path,
                log=tmp_path,
                username=login.username,
                password=login.password,
            )
            account.write_docker_config(tmp_path / "docker")
            environment = {"DOCKER_CONFIG": str(tmp_path / "docker")}
            crane.run("push", image.layout, reference, env=environment)
            assert crane.run("digest", reference, env=environment).stdout.strip() == image.digest
            assert "repository:tiny:push,pull" in login.scopes

    def test_a_blob_in_chunks_and_in_one(self, faulty_registry: FaultyRegistry) -> None:
        location = upload(faulty_registry)
        half = len(BLOB) // 2
        for begin, end in ((0, half), (half, len(BLOB))):
            reply = ask(
                faulty_registry, "PATCH", location, BLOB[begin:end], {"Content-Range": f"{begin}-{end - 1}"}
            )
            assert (reply.status, reply.headers["Range"]) == (202, f"0-{end - 1}")
            location = reply.headers["Location"]
        assert ask(faulty_registry, "GET", location).headers["Range"] == f"0-{len(BLOB) - 1}"
        assert ask(faulty_registry, "PUT", f"{location}&digest={DIGEST}").status == 201
        assert (
            ask(faulty_registry, "PUT", f"{upload(faulty_registry, 'other')}&digest={DIGEST}", BLOB).status
            == 201
        )
        assert ask(faulty_registry, "GET", f"/v2/r/blobs/{DIGEST}").body == BLOB
        assert ask(faulty_registry, "HEAD", f"/v2/r/blobs/{DIGEST}").headers["Content-Length"] == str(
            len(BLOB)
        )
        part = ask(faulty_registry, "GET", f"/v2/r/blobs/{DIGEST}", headers={"Range": "bytes=1000-"})
        assert (part.status, part.body) == (206, BLOB[1000:])

    def test_false_uploads_are_refused(self, faulty_registry: FaultyRegistry) -> None:
        reply = ask(faulty_registry, "PUT", f"{upload(faulty_registry)}&digest={DIGEST}", BLOB[:-1])
        assert (reply.status, error_code(reply)) == (400, "DIGEST_INVALID")
        assert ask(faulty_registry, "HEAD", f"/v2/r/blobs/{DIGEST}").status == 404
        skipped = ask(faulty_registry, "PATCH", upload(faulty_registry), BLOB, {"Content-Range": "10-20"})
        assert skipped.status == 416
        assert (
            error_code(ask(faulty_registry, "PATCH", "/v2/r/blobs/uploads/00", BLOB)) == "BLOB_UPLOAD_INVALID"
        )

    def test_mounts(self, faulty_registry: FaultyRegistry) -> None:
        faulty_registry.store.add_blob("source", BLOB)
        path = f"/v2/r/blobs/uploads/?mount={DIGEST}&from="
        assert ask(faulty_registry, "POST", f"{path}elsewhere").status == 202
        assert ask(faulty_registry, "POST", f"{path}source").status == 201
        assert ask(faulty_registry, "HEAD", f"/v2/r/blobs/{DIGEST}").status == 200

    def test_a_manifest_comes_last(self, faulty_registry: FaultyRegistry) -> None:
        part = {"mediaType": "application/octet-stream", "digest": DIGEST, "size": len(BLOB)}
        manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": MANIFEST, "config": part, "layers": [part]}
        ).encode()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        index = json.dumps(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"digest": digest}]}
        ).encode()
        assert error_code(put_manifest(faulty_registry, "v1", manifest, MANIFEST)) == "MANIFEST_BLOB_UNKNOWN"
        assert error_code(put_manifest(faulty_registry, "v1", index)) == "MANIFEST_BLOB_UNKNOWN"
        faulty_registry.store.add_blob("r", BLOB)
        assert put_manifest(faulty_registry, digest, manifest, MANIFEST).status == 201
        assert put_manifest(faulty_registry, "v1", index).status == 201
        assert error_code(put_manifest(faulty_registry, "v2", index, MANIFEST)) == "MANIFEST_INVALID"
        assert error_code(put_manifest(faulty_registry, "sha256:" + "0" * 64, index)) == "DIGEST_INVALID"
        assert faulty_registry.store.tags("r") == ["v1"]
        assert ask(faulty_registry, "GET", "/v2/r/manifests/v1").body == index

    def test_tags_come_in_pages(self, faulty_registry: FaultyRegistry) -> None:
        for tag in ("a", "b", "c"):
            put_manifest(faulty_registry, tag, EMPTY_INDEX)
        first = ask(faulty_registry, "GET", "/v2/r/tags/list?n=2")
        assert json.loads(first.body)["tags"] == ["a", "b"]
        following = first.headers["Link"].removeprefix("<").partition(">")[0]
        last = ask(faulty_registry, "GET", following)
        assert json.loads(last.body)["tags"] == ["c"]
        assert "Link" not in last.headers

    def test_referrers_are_listed_and_filtered(self, tmp_path: Path) -> None:
        with FaultyRegistry(tmp_path, has_referrers_api=True) as registry:
            subject = put_manifest(registry, "v1", EMPTY_INDEX).headers["Docker-Content-Digest"]
            for kind in ("application/x.one", "application/x.two"):
                referrer = {**json.loads(EMPTY_INDEX), "artifactType": kind, "subject": {"digest": subject}}
                assert (
                    put_manifest(registry, kind[14:], json.dumps(referrer).encode()).headers["OCI-Subject"]
                    == subject
                )
            reply = ask(registry, "GET", f"/v2/r/referrers/{subject}")
            assert {entry["artifactType"] for entry in json.loads(reply.body)["manifests"]} == {
                "application/x.one", "application/x.two",
            }  # fmt: skip
            only = ask(registry, "GET", f"/v2/r/referrers/{subject}?artifactType=application/x.one")
            assert [entry["artifactType"] for entry in json.loads(only.body)["manifests"]] == [
                "application/x.one"
            ]
            assert only.headers["OCI-Filters-Applied"] == "artifactType"

    def test_requests_are_recorded(self, faulty_registry: FaultyRegistry) -> None:
        ask(faulty_registry, "PUT", f"{upload(faulty_registry)}&digest={DIGEST}", BLOB, {"X-Told": "yes"})
        ask(faulty_registry, "GET", f"/v2/r/blobs/{DIGEST}")
        started, put, got = faulty_registry.requests
        assert (started.method, started.path, started.status) == ("POST", "/v2/r/blobs/uploads/", 202)
        assert (put.received_bytes, put.headers["x-told"], put.status) == (len(BLOB), "yes", 201)
        assert f"digest={DIGEST}" in put.query
        assert (got.received_bytes, got.sent_bytes) == (0, len(BLOB))

    def test_a_body_without_length_is_read(self, faulty_registry: FaultyRegistry) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", faulty_registry.port, timeout=10)
        pieces = iter([BLOB[:1000], BLOB[1000:]])
        connection.request(
            "PUT", f"{upload(faulty_registry)}&digest={DIGEST}", body=pieces, encode_chunked=True
        )
        assert connection.getresponse().status == 201
        connection.close()


class TestFaults:
    def test_it_fails_so_many_times_and_then_works(self, faulty_registry: FaultyRegistry) -> None:
        fault = faulty_registry.inject(
            Answer(status=503, headers={"Retry-After": "1"}), method="GET", path="/blobs/", skip=1, times=2
        )
        faulty_registry.store.add_blob("r", BLOB)
        replies = [ask(faulty_registry, "GET", f"/v2/r/blobs/{DIGEST}") for _ in range(4)]
        assert [reply.status for reply in replies] == [200, 503, 503, 200]
        assert replies[1].headers["Retry-After"] == "1"
        assert fault.hits == 2

    def test_a_fault_leaves_other_requests_alone(self, faulty_registry: FaultyRegistry) -> None:
        faulty_registry.inject(Answer(status=429), method="PUT", path=r"/manifests/v1$", times=None)
        assert put_manifest(faulty_registry, "v2", EMPTY_INDEX).status == 201
        assert [put_manifest(faulty_registry, "v1", EMPTY_INDEX).status for _ in range(3)] == [429] * 3
        assert faulty_registry.store.tags("r") == ["v2"]

    @pytest.mark.parametrize("reset", [False, True])
    def test_a_response_is_cut(self, faulty_registry: FaultyRegistry, *, reset: bool) -> None:
        faulty_registry.store.add_blob("r", BLOB)
        faulty_registry.inject(CutResponse(after_bytes=1000, reset=reset))
        kind = ConnectionResetError if reset else http.client.IncompleteRead
        with pytest.raises(kind) as cut:
            ask(faulty_registry, "GET", f"/v2/r/blobs/{DIGEST}")
        if isinstance(cut.value, http.client.IncompleteRead):
            assert cut.value.partial == BLOB[:1000]
        assert faulty_registry.requests[0].sent_bytes == 1000
        assert ask(faulty_registry, "GET", f"/v2/r/blobs/{DIGEST}").body == BLOB

    @pytest.mark.parametrize("reset", [False, True])
    def test_a_request_is_cut_and_its_upload_dead(
        self, faulty_registry: FaultyRegistry, *, reset: bool
    ) -> None:
        faulty_registry.inject(CutRequest(after_bytes=70_000, reset=reset), method="PATCH")
        location = upload(faulty_registry)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(faulty_registry, "PATCH", location, BLOB * 20)
        assert faulty_registry.requests[-1].status == 0
        assert 70_000 <= faulty_registry.requests[-1].received_bytes < len(BLOB)
        assert error_code(ask(faulty_registry, "PATCH", location, BLOB)) == "BLOB_UPLOAD_INVALID"

    def test_bodies_and_digests_that_lie(self, faulty_registry: FaultyRegistry) -> None:
        faulty_registry.store.add_blob("r", BLOB)
        faulty_registry.inject(Corrupt())
        corrupt = ask(faulty_registry, "GET", f"/v2/r/blobs/{DIGEST}")
        assert len(corrupt.body) == len(BLOB)
        assert corrupt.body != BLOB
        faulty_registry.inject(WrongDigest())
        assert (
            ask(faulty_registry, "HEAD", f"/v2/r/blobs/{DIGEST}").headers["Docker-Content-Digest"] != DIGEST
        )
        false = faulty_registry.store.add_blob("r", b"other", digest=f"sha256:{'1' * 64}")
        assert ask(faulty_registry, "GET", f"/v2/r/blobs/{false}").body == b"other"

    @pytest.mark.parametrize("announced", [True, False])
    def test_a_manifest_of_100_mb(self, faulty_registry: FaultyRegistry, *, announced: bool) -> None:
        put_manifest(faulty_registry, "v1", EMPTY_INDEX)
        faulty_registry.inject(Inflate(size_bytes=100_000_000, announced=announced), method="GET")
        reply = ask(faulty_registry, "GET", "/v2/r/manifests/v1")
        assert len(reply.body) == 100_000_000
        assert ("Content-Length" in reply.headers) is announced
        assert json.loads(reply.body) == json.loads(EMPTY_INDEX)

    def test_chunks_can_be_refused(self, tmp_path: Path) -> None:
        with FaultyRegistry(tmp_path, takes_chunks=False) as registry:
            location = upload(registry)
            assert ask(registry, "PATCH", location, BLOB).status == 405
            assert ask(registry, "PUT", f"{location}&digest={DIGEST}", BLOB).status == 201

    def test_it_hangs_until_the_client_gives_up(self, faulty_registry: FaultyRegistry) -> None:
        faulty_registry.inject(Hang())
        connection = http.client.HTTPConnection("127.0.0.1", faulty_registry.port, timeout=0.2)
        connection.request("GET", "/v2/")
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()
        assert ask(faulty_registry, "GET", "/v2/").status == 200

    def test_stopping_ends_what_hangs(self, tmp_path: Path) -> None:
        with FaultyRegistry(tmp_path) as registry:
            registry.inject(Hang())
            failures: list[Exception] = []

            def wait() -> None:
                try:
                    ask(registry, "GET", "/v2/")
                except (ConnectionError, http.client.HTTPException) as error:
                    failures.append(error)

            client = threading.Thread(target=wait)
            client.start()
            time.sleep(0.2)
            began = time.monotonic()
        client.join()
        assert len(failures) == 1
        assert time.monotonic() - began < 5


class TestLogins:
    def test_basic(self, tmp_path: Path) -> None:
        login = BasicLogin()
        with FaultyRegistry(tmp_path, login=login) as registry:
            refused = ask(registry, "GET", "/v2/")
            assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, 'Basic realm="tests"')
            assert ask(registry, "GET", "/v2/", headers=basic(login.username, "wrong")).status == 401
            assert ask(registry, "GET", "/v2/", headers=basic(login.username, login.password)).status == 200

    def test_tokens_have_scopes_and_expire(self, tmp_path: Path) -> None:
        login = TokenLogin(uses=2)
        with FaultyRegistry(tmp_path, login=login) as registry:
            registry.store.add_blob("r", BLOB)
            path = f"/v2/r/blobs/{DIGEST}"
            challenge = ask(registry, "HEAD", path).headers["WWW-Authenticate"]
            assert (
                challenge == f'Bearer realm="{registry.url}/token",service="tests",scope="repository:r:pull"'
            )
            query = "/token?service=tests&scope=repository:r:pull"
            assert ask(registry, "GET", query).status == 401
            reply = ask(registry, "GET", query, headers=basic(login.username, login.password))
            bearer = {"Authorization": f"Bearer {json.loads(reply.body)['token']}"}
            assert ask(registry, "POST", "/v2/r/blobs/uploads/", headers=bearer).status == 401
            assert ask(registry, "HEAD", "/v2/other/tags/list", headers=bearer).status == 401
            assert [ask(registry, "HEAD", path, headers=bearer).status for _ in range(3)] == [200, 200, 401]
            assert login.scopes == ["repository:r:pull"]

    def test_a_mount_needs_both_scopes(self, tmp_path: Path) -> None:
        with FaultyRegistry(tmp_path, login=TokenLogin()) as registry:
            challenge = ask(registry, "POST", f"/v2/r/blobs/uploads/?mount={DIGEST}&from=s").headers[
                "WWW-Authenticate"
            ]
            assert 'scope="repository:r:pull,push repository:s:pull"' in challenge

    def test_an_identity_token_is_exchanged(self, tmp_path: Path) -> None:
        login = TokenLogin(identity_token="mine")
        with FaultyRegistry(tmp_path, login=login) as registry:
            form = "grant_type=refresh_token&service=tests&client_id=t&scope=repository:r:pull&refresh_token="
            assert ask(registry, "POST", "/token", f"{form}other".encode()).status == 401
            reply = ask(registry, "POST", "/token", f"{form}mine".encode())
            assert reply.status == 200
            assert json.loads(reply.body)["access_token"]


def basic(username: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"}

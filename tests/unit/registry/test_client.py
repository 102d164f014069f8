"""Reading: nothing that a registry says is believed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebuild.errors import RegistryError, ToolError
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import INDEX, MANIFEST, Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.registry.client import RegistryClient, open_client
from tests.unit.registry.conftest import FAST, MakeDouble, OpenSink, Recorder
from tests.unit.registry.double import Double, Handler

DATA = bytes(range(256)) * 1000


@pytest.fixture
def client(double: Double, progress: Recorder) -> Iterator[RegistryClient]:
    reference = Reference.parse(f"{double.host}/acme/llm:1")
    with open_client(reference, environment={}, progress=progress, limits=FAST) as opened:
        yield opened


def put(double: Double, data: bytes = DATA) -> Digest:
    digest = Digest.of(data)
    double.state.blobs["acme/llm", str(digest)] = data
    return digest


def test_manifest_that_is_not_there(double: Double, client: RegistryClient) -> None:
    assert client.find_manifest("9") is None
    assert client.get_manifest("9") is None
    assert not client.has_manifest("9")
    with pytest.raises(RegistryError, match=rf"{double.host}/acme/llm:9 is not there"):
        client.manifest("9")
    with pytest.raises(RegistryError, match=r"acme/llm@sha256:2d71.* is not there"):
        client.manifest(Digest.of(b"x"))


def test_manifest_of_100_mb(double: Double, client: RegistryClient) -> None:
    sent = 0

    def send_much(handler: Handler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Content-Length", str(100 << 20))
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(bytes(1 << 20))
            sent += 1 << 20

    double.fault("GET", "/manifests/", times=-1, action=send_much)
    with pytest.raises(RegistryError, match="the answer is larger than 4194304 bytes"):
        client.manifest("big")
    assert sent < 40 << 20  # the rest was never read
    assert double.count("GET") == 1


@pytest.mark.parametrize("name", ["tag", "digest"])
def test_lie_in_a_header(double: Double, client: RegistryClient, name: str) -> None:
    told = f"sha256:{'3' * 64}"
    reference = "1" if name == "tag" else told
    double.fault("GET", "/manifests/", status=200, body=b"{}", headers={"Docker-Content-Digest": told})
    with pytest.raises(RegistryError, match=rf"says it is {told}, but it is {Digest.of(b'{}')}"):
        client.manifest(reference)


def test_other_bytes_than_asked_for(double: Double, client: RegistryClient) -> None:
    double.fault("GET", "/manifests/", status=200, body=b"{}")
    with pytest.raises(RegistryError, match="says it is"):
        client.manifest(Digest.of(b"another"))


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b'{"mediaType":3}'])
def test_media_type_of_a_document_that_has_none(double: Double, client: RegistryClient, body: bytes) -> None:
    double.fault("GET", "/manifests/", status=200, body=body, headers={"Content-Type": "a/b; charset=x"})
    assert client.manifest("1").descriptor == Descriptor(
        media_type="a/b", digest=Digest.of(body), size_bytes=len(body)
    )


def test_blob(double: Double, client: RegistryClient) -> None:
    digest = put(double)
    assert b"".join(client.get_blob(digest)) == DATA
    assert b"".join(client.get_blob(digest, size_bytes=len(DATA))) == DATA
    assert b"".join(client.stream_blob(digest, offset_bytes=1000)) == DATA[1000:]
    assert client.has_blob(digest, len(DATA))
    assert not client.has_blob(Digest.of(b""), 0)


def test_blob_that_is_another(double: Double, client: RegistryClient) -> None:
    digest = put(double)
    double.state.blobs["acme/llm", str(digest)] = DATA[:-1] + b"!"
    with pytest.raises(RegistryError, match=rf"says it is {digest}, but it is sha256:"):
        list(client.get_blob(digest))


def test_blob_that_is_longer(double: Double, client: RegistryClient) -> None:
    digest = put(double)
    with pytest.raises(RegistryError, match="longer than its 1000 bytes"):
        list(client.get_blob(digest, size_bytes=1000))


def test_blob_that_is_shorter(double: Double, client: RegistryClient) -> None:
    digest = put(double)
    with pytest.raises(RegistryError, match=r"ended after 256000 of 256001 bytes.*gave up"):
        list(client.get_blob(digest, size_bytes=len(DATA) + 1))


def test_blob_that_is_not_there(client: RegistryClient) -> None:
    with pytest.raises(RegistryError, match="404 BLOB_UNKNOWN: blob unknown to registry"):
        list(client.get_blob(Digest.of(b"x")))


@pytest.mark.parametrize("ranges", [True, False], ids=["server knows ranges", "server does not"])
def test_blob_cut_in_the_middle(double: Double, client: RegistryClient, ranges: bool) -> None:
    digest = put(double)

    def cut(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA[:100_000])
        handler.cut()

    double.fault("GET", "/blobs/", action=cut)
    if not ranges:
        double.fault("GET", "/blobs/", status=200, body=DATA)
    assert b"".join(client.get_blob(digest, size_bytes=len(DATA))) == DATA


def test_part_from_another_place(double: Double, client: RegistryClient) -> None:
    digest = put(double)
    double.fault(
        "GET", "/blobs/", times=-1, status=206, body=b"x", headers={"Content-Range": "bytes 900-901/2"}
    )
    with pytest.raises(RegistryError, match="from another place than byte 5"):
        list(client.stream_blob(digest, offset_bytes=5))


def test_small_blob_with_a_cap(double: Double, client: RegistryClient) -> None:
    digest = put(double)
    descriptor = Descriptor(media_type="a/b", digest=digest, size_bytes=len(DATA))
    assert client.read_blob(descriptor, cap_bytes=len(DATA)) == DATA
    with pytest.raises(RegistryError, match="has 256000 bytes, more than 1000"):
        client.read_blob(descriptor, cap_bytes=1000)


def test_redirect_to_another_host_carries_no_login(
    make_double: MakeDouble, progress: Recorder, tmp_path: Path
) -> None:
    double, store = make_double(auth="basic"), make_double()
    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {double.host: {"username": double.username, "password": double.password}}})
    )
    digest = put(store)
    location = {"Location": f"http://{store.host}/v2/acme/llm/blobs/{digest}?signature=private"}
    double.fault("GET", "/blobs/", after=1, times=-1, status=307, headers=location)
    reference = Reference.parse(f"{double.host}/acme/llm:1")
    environment = {"DOCKER_CONFIG": str(tmp_path)}
    with open_client(reference, environment=environment, progress=progress, limits=FAST) as client:
        assert b"".join(client.get_blob(digest)) == DATA
        assert "authorization" in double.requests[-1].headers
        assert [("authorization" in r.headers) for r in store.requests] == [False]
        store.state.blobs.clear()
        with pytest.raises(RegistryError) as error:
            list(client.get_blob(digest))
        assert "private" not in error.value.message


def test_redirects_without_end(double: Double, client: RegistryClient) -> None:
    double.fault("GET", "/manifests/", times=-1, status=302, headers={"Location": "/v2/acme/llm/manifests/1"})
    with pytest.raises(RegistryError, match="redirected more than 5 times"):
        client.manifest("1")


def test_redirect_without_tls(double: Double, client: RegistryClient) -> None:
    double.fault("GET", "/blobs/", times=-1, status=307, headers={"Location": "http://203.0.113.9/x"})
    with pytest.raises(RegistryError, match=r"sent on to http://203\.0\.113\.9"):
        list(client.get_blob(Digest.of(b"x")))


def test_tags_over_pages(double: Double, client: RegistryClient) -> None:
    for tag in "abcde":
        double.state.tags["acme/llm", tag] = "x"
    assert client.tags() == ("a", "b", "c", "d", "e")
    assert double.count("GET") == 3


def test_tags_without_end(double: Double, client: RegistryClient) -> None:
    more = {"Link": '</v2/acme/llm/tags/list>; rel="next"'}
    double.fault("GET", "/tags/", times=-1, status=200, body=b'{"tags":["a"]}', headers=more)
    with pytest.raises(RegistryError, match="does not end after 64 pages"):
        client.tags()


@pytest.mark.parametrize("body", [b"", b"[]", b'{"tags":[1]}', b'{"tags":"x"}', b"[" * 100_000])
def test_tags_that_are_none(double: Double, client: RegistryClient, body: bytes) -> None:
    double.fault("GET", "/tags/", status=200, body=body)
    with pytest.raises(RegistryError, match="a list that is none"):
        client.tags()


def test_tags_of_no_repository(double: Double, client: RegistryClient) -> None:
    double.fault("GET", "/tags/", status=404, body=b'{"errors":[{"code":"NAME_UNKNOWN","message":"m"}]}')
    with pytest.raises(RegistryError, match=r"GET the tags at .*: 404 NAME_UNKNOWN: m"):
        client.tags()


def test_too_many_referrers(double: Double, client: RegistryClient) -> None:
    entries = [
        {"mediaType": MANIFEST, "digest": str(Digest.of(str(i).encode())), "size": 1} for i in range(257)
    ]
    body = json.dumps({"manifests": entries}).encode()
    double.fault("GET", "/referrers/", status=200, body=body, headers={"Content-Type": INDEX})
    with pytest.raises(RegistryError, match="more than 256 referrers"):
        client.list_referrers(Digest.of(b"x"))


@pytest.mark.parametrize("body", [b"<html>", b'{"manifests":[{}]}', b'{"manifests":7}'])
def test_referrers_that_are_none(double: Double, client: RegistryClient, body: bytes) -> None:
    double.fault("GET", "/referrers/", status=200, body=body, headers={"Content-Type": INDEX})
    with pytest.raises(RegistryError, match="a list that is none"):
        client.list_referrers(Digest.of(b"x"))


def test_server_that_answers_everything_with_a_page(double: Double, client: RegistryClient) -> None:
    double.fault("GET", "/referrers/", status=200, body=b"<html>", headers={"Content-Type": "text/html"})
    assert client.list_referrers(Digest.of(b"x")) == ()


@pytest.mark.parametrize("body", [b"<html>" * 100_000, b'{"errors":"x"}', b'{"errors":[7]}', b"[" * 100_000])
def test_error_bodies_of_any_kind(double: Double, client: RegistryClient, body: bytes) -> None:
    double.fault("GET", "", times=-1, status=403, body=body)
    with pytest.raises(RegistryError, match=r"403 Forbidden$"):
        client.manifest("1")


def test_trickle_has_an_end(double: Double, progress: Recorder) -> None:
    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not handler.double.stopping.wait(0.1):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    double.fault("GET", "", times=-1, action=trickle)
    from dataclasses import replace

    limits = replace(FAST, deadline_s=0.5)
    reference = Reference.parse(f"{double.host}/acme/llm:1")
    with (
        open_client(reference, environment={}, progress=progress, limits=limits) as client,
        pytest.raises(RegistryError, match="did not end within"),
    ):
        client.manifest("1")


def test_proxy_is_not_asked_for_this_machine(double: Double, sink_of: OpenSink) -> None:
    environment = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}
    data = Blob.of_bytes(b"x")
    sink_of(double, environment=environment).put_blob(data, digest=None, title="m")


def test_proxy_is_asked_for_others(double: Double, progress: Recorder) -> None:
    """The double is no proxy; that it is asked to CONNECT is what counts."""
    double.fault("CONNECT", "", times=-1, status=407)
    reference = Reference.parse("registry.invalid/acme/llm:1")
    environment = {"https_proxy": f"http://someone:hidden@{double.host}"}
    with (
        open_client(reference, environment=environment, progress=progress, limits=FAST) as client,
        pytest.raises(RegistryError, match="the proxy refused: 407") as error,
    ):
        client.manifest("1")
    assert "HTTPS_PROXY" in error.value.hint
    assert "hidden" not in error.value.message
    assert double.requests[-1].path == "registry.invalid:443"


@pytest.mark.parametrize("proxy", ["socks5://h:1", "http://", "http://h:port"])
def test_proxy_that_is_none(double: Double, sink_of: OpenSink, proxy: str) -> None:
    with pytest.raises(ToolError, match="HTTPS_PROXY is not the address of an HTTP proxy"):
        sink_of(double, environment={"HTTPS_PROXY": proxy})

"""What a push does to a registry that behaves, and to one that does not."""

import json
from pathlib import Path

import pytest

from edgebuild.errors import RegistryError, ToolError
from edgebuild.oci.blob import Blob
from edgebuild.oci.digest import Digest
from edgebuild.registry.patience import Limits
from edgebuild.registry.push import Way
from tests.unit.registry.conftest import FAST, MakeDouble, OpenSink, Recorder
from tests.unit.registry.double import UPLOADS, Double, Handler, make_manifest


def digest_of(blob: Blob) -> Digest:
    return Digest.of(blob.read())


def stored(double: Double, digest: Digest) -> bytes | None:
    return double.state.blobs.get(("acme/llm", str(digest)))


@pytest.mark.parametrize("is_known", [True, False], ids=["digest known", "digest unknown"])
def test_blob_goes_in_parts(
    double: Double, sink_of: OpenSink, blob: Blob, progress: Recorder, is_known: bool
) -> None:
    sink = sink_of(double)
    digest = sink.put_blob(blob, digest=digest_of(blob) if is_known else None, title="model m")
    assert digest == digest_of(blob)
    assert stored(double, digest) == blob.read()
    assert double.count("PATCH") == 5
    assert progress.advanced == {"push model m": blob.size_bytes}
    assert sink.report().bytes_by(Way.SENT) == blob.size_bytes


def test_small_blob_of_known_digest_goes_in_one_put(double: Double, sink_of: OpenSink) -> None:
    small = Blob.of_bytes(b"{}")
    sink_of(double).put_blob(small, digest=digest_of(small), title="config")
    assert [(r.method, r.status) for r in double.requests] == [("HEAD", 404), ("POST", 202), ("PUT", 201)]


@pytest.mark.parametrize("data", [b"", b"x", b"y" * (64 << 10), b"z" * (128 << 10)])
def test_sizes_at_the_edges(double: Double, sink_of: OpenSink, data: bytes) -> None:
    assert sink_of(double).put_blob(Blob.of_bytes(data), digest=None, title="b") == Digest.of(data)
    assert stored(double, Digest.of(data)) == data


def test_blob_that_is_there_is_not_read(
    double: Double, sink_of: OpenSink, blob: Blob, tmp_path: Path
) -> None:
    digest = digest_of(blob)
    sink = sink_of(double)
    sink.put_blob(blob, digest=digest, title="m")
    (tmp_path / "weights").unlink()
    double.requests.clear()
    sink.put_blob(blob, digest=digest, title="m")
    assert [(r.method, r.status) for r in double.requests] == [("HEAD", 200)]
    assert sink.report().bytes_by(Way.PRESENT) == blob.size_bytes


def test_blob_of_another_repository_is_mounted(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    sink_of(double, repository="acme/other").put_blob(blob, digest=None, title="m")
    sink = sink_of(double, mount_from="acme/other")
    patches = double.count("PATCH")
    digest = sink.put_blob(blob, digest=digest_of(blob), title="m")
    assert stored(double, digest) == blob.read()
    assert double.count("PATCH") == patches
    assert sink.report().bytes_by(Way.MOUNTED) == blob.size_bytes


def test_mount_of_what_is_not_there_goes_on_in_its_session(
    double: Double, sink_of: OpenSink, blob: Blob
) -> None:
    sink_of(double, mount_from="acme/other").put_blob(blob, digest=digest_of(blob), title="m")
    assert double.count("POST") == 1
    assert stored(double, digest_of(blob)) == blob.read()


def cut_in_the_middle(handler: Handler) -> None:
    handler.read_body(10_000)
    if handler.double.sessions_die:
        handler.double.state.sessions.clear()
    handler.cut()


@pytest.mark.parametrize("is_known", [True, False], ids=["digest known", "digest unknown"])
@pytest.mark.parametrize("dies", [True, False], ids=["session dies", "session lives"])
def test_patch_cut_in_the_middle(
    double: Double, sink_of: OpenSink, blob: Blob, progress: Recorder, dies: bool, is_known: bool
) -> None:
    double.sessions_die = dies
    double.fault("PATCH", UPLOADS, after=3, action=cut_in_the_middle)
    digest = sink_of(double).put_blob(blob, digest=digest_of(blob) if is_known else None, title="m")
    assert stored(double, digest) == blob.read()
    # 3 went well, 1 was cut; a dead session begins again with all 5, a living one goes on with 2.
    assert double.count("PATCH") == (9 if dies else 6)
    assert double.count("POST") == (2 if dies else 1)
    assert progress.advanced["push m"] == blob.size_bytes  # nothing is counted twice


def test_every_patch_is_cut(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    double.fault("PATCH", UPLOADS, times=-1, action=cut_in_the_middle)
    with pytest.raises(RegistryError, match=r"PATCH upload of m at 127.* \(gave up after 4 tries"):
        sink_of(double).put_blob(blob, digest=None, title="m")
    assert double.tag_names() == []


def test_each_session_dies_at_the_same_place(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    """Getting as far as before is no progress: the tries are counted on."""

    def cut_the_third(handler: Handler) -> None:
        cut_in_the_middle(handler)
        double.fault("PATCH", UPLOADS, after=2, action=cut_the_third)

    double.fault("PATCH", UPLOADS, after=2, action=cut_the_third)
    with pytest.raises(RegistryError, match="gave up after 4 tries"):
        sink_of(double).put_blob(blob, digest=None, title="m")
    assert double.count("POST") == 4


@pytest.mark.parametrize("status", [404, 405, 411, 416, 501])
@pytest.mark.parametrize("is_known", [True, False], ids=["digest known", "digest unknown"])
def test_registry_without_parts_gets_it_whole(
    double: Double, sink_of: OpenSink, blob: Blob, is_known: bool, status: int
) -> None:
    double.fault("PATCH", UPLOADS, times=-1, status=status)
    digest = sink_of(double).put_blob(blob, digest=digest_of(blob) if is_known else None, title="m")
    assert stored(double, digest) == blob.read()
    assert double.count("PATCH") == 1


def test_answer_to_the_end_is_lost(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    """The blob has arrived: it is not sent again."""

    def store_and_cut(handler: Handler) -> None:
        (session,) = double.state.sessions.values()
        double.state.blobs["acme/llm", str(digest_of(blob))] = bytes(session)
        double.state.sessions.clear()
        handler.cut()

    double.fault("PUT", UPLOADS, action=store_and_cut)
    sink_of(double).put_blob(blob, digest=None, title="m")
    assert double.count("PATCH") == 5


def test_chunk_size_that_the_registry_wants(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    location = {"Location": "/v2/acme/llm/blobs/uploads/s", "OCI-Chunk-Min-Length": "200000"}
    double.state.sessions["s"] = bytearray()
    double.fault("POST", UPLOADS, status=202, headers=location)
    sink_of(double).put_blob(blob, digest=None, title="m")
    assert double.count("PATCH") == 2


def test_failing_for_a_while(double: Double, sink_of: OpenSink, blob: Blob, progress: Recorder) -> None:
    for method in ("HEAD", "POST", "PATCH", "PUT"):
        double.fault(method, "", times=2, status=500)
    sink_of(double).put_blob(blob, digest=digest_of(blob), title="m")
    assert stored(double, digest_of(blob)) == blob.read()
    assert any("500 Internal Server Error; trying again in" in note for note in progress.notes)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PATCH", "PUT"])
def test_failing_for_ever(double: Double, sink_of: OpenSink, blob: Blob, method: str) -> None:
    double.fault(method, "", times=-1, status=503)
    with pytest.raises(
        RegistryError, match=rf"{method} .* 503 Service Unavailable \(gave up after 4 tries"
    ) as error:
        sink_of(double).put_blob(blob, digest=digest_of(blob), title="m")
    assert error.value.hint == "the registry fails; try again later, or read its log"
    assert type(error.value) is RegistryError  # nobody above tries again
    assert double.count(method) == 4


def test_retry_after_is_honoured(double: Double, sink_of: OpenSink, progress: Recorder) -> None:
    double.fault("HEAD", "", status=429, headers={"Retry-After": "1"})
    sink_of(double).put_blob(Blob.of_bytes(b"x"), digest=Digest.of(b"x"), title="m")
    assert any(note.endswith("trying again in 1.0 s") for note in progress.notes)


def test_retry_after_beyond_our_patience(double: Double, sink_of: OpenSink) -> None:
    double.fault("HEAD", "", times=-1, status=429, headers={"Retry-After": "3600"})
    with pytest.raises(RegistryError, match=r"429 Too Many Requests \(asked to wait 3600 s, gave up"):
        sink_of(double).put_blob(Blob.of_bytes(b"x"), digest=Digest.of(b"x"), title="m")
    assert double.count("HEAD") == 1


def test_hang(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    double.fault("PATCH", "", times=-1, action=lambda h: h.double.stopping.wait() and None)
    limits = Limits(idle_s=0.3, attempts=2, backoff_s=0.01)
    with pytest.raises(RegistryError, match=r"it did not answer in time \(gave up after 2 tries") as error:
        sink_of(double, limits=limits).put_blob(blob, digest=None, title="m")
    assert "reached" in error.value.hint


def test_nobody_listens(double: Double, sink_of: OpenSink) -> None:
    from tests.unit.registry.double import running_double

    with running_double() as gone:
        pass
    with pytest.raises(RegistryError, match="cannot connect: Connection refused") as error:
        sink_of(gone).put_blob(Blob.of_bytes(b"x"), digest=None, title="m")
    assert "registry runs" in error.value.hint


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (403, "DENIED", "ask the repository's owner"),
        (404, "NAME_UNKNOWN", "check the repository's name"),
        (405, "UNSUPPORTED", "takes no pushes"),
        (413, "TOO_LARGE", "limits the size"),
    ],
)
def test_refusals_are_told_once(
    double: Double, sink_of: OpenSink, blob: Blob, status: int, code: str, hint: str
) -> None:
    body = json.dumps({"errors": [{"code": code, "message": "not\x1b[31m here\nat all"}]}).encode()
    double.fault("POST", UPLOADS, times=-1, status=status, body=body)
    with pytest.raises(RegistryError) as error:
        sink_of(double).put_blob(blob, digest=digest_of(blob), title="model m")
    expected = f"POST upload of model m at {double.host}/acme/llm: {status} {code}: not [31m here at all"
    assert error.value.message == expected
    assert hint in error.value.hint
    assert double.count("POST") == 1


def test_wrong_digest(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    with pytest.raises(RegistryError, match="400 DIGEST_INVALID: provided digest did not match") as error:
        sink_of(double).put_blob(blob, digest=Digest.of(b"another"), title="m")
    assert "changed while it was read" in error.value.hint
    assert double.state.blobs == {}


def test_registry_lies_about_a_blob(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    other = {"Docker-Content-Digest": f"sha256:{'0' * 64}", "Location": "/"}
    double.fault("PUT", UPLOADS, status=201, headers=other)
    with pytest.raises(RegistryError, match="says it is sha256:000000"):
        sink_of(double).put_blob(blob, digest=None, title="m")


def test_registry_lies_about_a_size(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    double.state.blobs["acme/llm", str(digest_of(blob))] = b"short"
    with pytest.raises(RegistryError, match="says it has 5 bytes, but it is one of 300000 bytes"):
        sink_of(double).put_blob(blob, digest=digest_of(blob), title="m")


def test_registry_claims_more_than_was_sent(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    double.fault("PATCH", UPLOADS, status=202, headers={"Range": "0-299999"})
    with pytest.raises(RegistryError, match="it has 300000 bytes, but it is sent 65536 bytes"):
        sink_of(double).put_blob(blob, digest=None, title="m")


def test_file_that_shrinks(double: Double, sink_of: OpenSink, blob: Blob, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"short")
    with pytest.raises(ToolError, match="m cannot be read: a file changed while it was read"):
        sink_of(double).put_blob(blob, digest=None, title="m")
    assert double.state.blobs == {}


def test_file_that_grows(double: Double, sink_of: OpenSink, blob: Blob, tmp_path: Path) -> None:
    with (tmp_path / "weights").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ToolError, match="m cannot be read: a file grew"):
        sink_of(double).put_blob(blob, digest=None, title="m")
    assert double.state.blobs == {}


def test_upload_on_another_host_gets_no_authorization(
    make_double: MakeDouble, sink_of: OpenSink, blob: Blob, tmp_path: Path
) -> None:
    double, other = make_double(auth="basic"), make_double()
    other.state.sessions["s"] = bytearray()
    double.fault(
        "POST",
        UPLOADS,
        after=2,
        status=202,
        headers={"Location": f"http://{other.host}/v2/acme/llm/blobs/uploads/s"},
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {double.host: {"username": double.username, "password": double.password}}})
    )
    sink = sink_of(double, environment={"DOCKER_CONFIG": str(tmp_path)})
    sink.check_access()
    digest = sink.put_blob(blob, digest=None, title="m")
    assert other.state.blobs["acme/llm", str(digest)] == blob.read()
    assert all("authorization" not in r.headers for r in other.requests)
    assert any("authorization" in r.headers for r in double.requests)


def test_upload_sent_on_without_tls(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    double.fault("POST", UPLOADS, status=202, headers={"Location": "http://198.51.100.7/x"})
    with pytest.raises(RegistryError, match=r"sent on to http://198\.51\.100\.7, which is not HTTPS"):
        sink_of(double).put_blob(blob, digest=None, title="m")


def test_patience_of_the_tests_is_short() -> None:
    assert FAST.deadline_s < Limits().deadline_s


def test_one_connection_is_enough(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    """Answers without a body, to HEAD above all, must not cost the connection."""
    sink = sink_of(double)
    sink.put_blob(blob, digest=digest_of(blob), title="m")
    sink.put_blob(blob, digest=digest_of(blob), title="m")
    sink.put_manifest(*make_manifest())
    sink.tag(make_manifest()[1], "1")
    assert sink.get_manifest("2") is None
    assert len({r.port for r in double.requests}) == 1


def test_session_that_is_forgotten(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    double.fault("PATCH", UPLOADS, after=2, status=404)
    digest = sink_of(double).put_blob(blob, digest=None, title="m")
    assert stored(double, digest) == blob.read()
    assert (double.count("POST"), double.count("PATCH")) == (2, 8)


def test_refusal_in_the_middle(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    double.fault("PATCH", UPLOADS, after=2, status=403)
    with pytest.raises(RegistryError, match=r"PATCH upload of m .* 403 Forbidden"):
        sink_of(double).put_blob(blob, digest=None, title="m")


def test_part_that_is_kept_in_part(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    def keep_some(handler: Handler) -> None:
        (session,) = double.state.sessions.values()
        session += handler.read_body()[:1000]
        handler.answer(202, b"", {"Range": f"bytes=0-{len(session) - 1}"})

    double.fault("PATCH", UPLOADS, after=1, action=keep_some)
    digest = sink_of(double).put_blob(blob, digest=None, title="m")
    assert stored(double, digest) == blob.read()


def test_parts_of_which_nothing_is_kept(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    double.fault("PATCH", UPLOADS, after=1, times=-1, status=202, headers={"Range": "0-65535"})
    with pytest.raises(RegistryError, match=r"the registry kept nothing of 65536 bytes \(gave up"):
        sink_of(double).put_blob(blob, digest=None, title="m")


def test_upload_without_an_address(double: Double, sink_of: OpenSink, blob: Blob) -> None:
    double.fault("POST", UPLOADS, status=202)
    with pytest.raises(RegistryError, match="does not say where to send to"):
        sink_of(double).put_blob(blob, digest=None, title="m")


@pytest.mark.parametrize("has_arrived", [True, False])
def test_whole_blob_whose_answer_is_lost(
    double: Double, sink_of: OpenSink, blob: Blob, progress: Recorder, has_arrived: bool
) -> None:
    def lose(handler: Handler) -> None:
        handler.read_body()
        if has_arrived:
            double.state.blobs["acme/llm", str(digest_of(blob))] = blob.read()
        handler.cut()

    double.fault("PUT", UPLOADS, action=lose)
    sink_of(double, chunk_bytes=1 << 20).put_blob(blob, digest=digest_of(blob), title="m")
    assert stored(double, digest_of(blob)) == blob.read()
    assert double.count("PUT") == (1 if has_arrived else 2)
    assert progress.advanced["push m"] == blob.size_bytes

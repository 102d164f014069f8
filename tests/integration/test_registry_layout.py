"""A layout on its way into a registry that fails: clear words, and no tag that names half an image."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgebuild.errors import EdgebuildError, ImageError, RegistryError, UsageError
from edgebuild.oci.digest import Digest
from edgebuild.oci.layout_read import Layout, blob_path
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import fallback_tag, signature_tag
from edgebuild.registry.layouts import LayoutPush, push_layout
from edgebuild.registry.patience import Limits
from edgebuild.registry.push import Way, open_sink
from tests.support.faulty_registry import (
    Answer,
    CutRequest,
    CutResponse,
    Effect,
    FaultyRegistry,
    Hang,
    TokenLogin,
    WrongDigest,
)
from tests.unit.registry.conftest import Recorder
from tests.unit.registry.signed_layout import SIGNED_FOR, write_signed_layout

FAST = Limits(idle_s=1, commit_s=2, attempts=3, deadline_s=5, backoff_s=0.01, backoff_cap_s=0.05)
TAGS = ("2.0-pi4", "2.0-x86", "2.0")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return write_signed_layout(tmp_path / "layout")


@pytest.fixture
def progress() -> Recorder:
    return Recorder()


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[FaultyRegistry]:
    with FaultyRegistry(tmp_path / "faulty") as registry:
        yield registry


def push(
    layout: Layout,
    registry: FaultyRegistry,
    progress: Recorder,
    *,
    name: str = "acme/llm:2.0",
    environment: dict[str, str] | None = None,
    mount_from: str = "",
) -> LayoutPush:
    reference = Reference.parse(f"{registry.host}/{name}")
    with open_sink(
        reference,
        environment=environment or {},
        progress=progress,
        limits=FAST,
        chunk_bytes=64 << 10,
        mount_from=mount_from,
    ) as sink:
        return push_layout(layout, reference, sink=sink, progress=progress)


def tags_of(registry: FaultyRegistry) -> tuple[str, ...]:
    """Tags of images; those of signatures may come before the image's own."""
    return tuple(tag for tag in registry.store.tags("acme/llm") if not tag.startswith("sha256-"))


@pytest.mark.parametrize("has_api", [True, False], ids=["referrers API", "fallback tag"])
def test_everything_arrives(layout: Layout, tmp_path: Path, progress: Recorder, has_api: bool) -> None:
    with FaultyRegistry(tmp_path / "registry", has_referrers_api=has_api) as registry:
        done = push(layout, registry, progress)
        assert done.tags == TAGS
        assert done.digest == layout.main().digest
        assert sorted(tags_of(registry)) == sorted(TAGS)
        reference = Reference.parse(f"{registry.host}/acme/llm:2.0")
        with open_sink(reference, environment={}, progress=progress, limits=FAST) as sink:
            subjects = (layout.main(), *layout.children(layout.main()))
            for subject in subjects:
                assert sink.get_manifest(str(subject.digest)) == layout.document(subject)
                assert sink.get_manifest(signature_tag(subject.digest)) == layout.document(
                    layout.find(signature_tag(subject.digest))
                )
                (referrer,) = sink.client.referrers(subject.digest)
                assert referrer.artifact_type == "application/vnd.dev.sigstore.bundle.v0.3+json"
                assert (sink.get_manifest(fallback_tag(subject.digest)) is None) is has_api
            for image in subjects[1:]:
                for child in layout.children(image):
                    assert b"".join(sink.client.get_blob(child.digest)) == layout.blob(child.digest).read()


def test_tags_come_last_and_the_whole_at_the_very_end(
    layout: Layout, faulty: FaultyRegistry, progress: Recorder
) -> None:
    push(layout, faulty, progress)
    puts = [
        r.path.rpartition("/")[2] for r in faulty.requests if r.method == "PUT" and "/manifests/" in r.path
    ]
    assert tuple(puts[-3:]) == TAGS
    assert all(name.startswith("sha256") for name in puts[:-3])


def test_second_push_sends_no_blob(layout: Layout, faulty: FaultyRegistry, progress: Recorder) -> None:
    first = push(layout, faulty, progress)
    again = push(layout, faulty, progress)
    assert first.report.bytes_by(Way.PRESENT) == 0
    assert again.report.bytes_by(Way.SENT) == 0
    assert again.report.bytes_by(Way.PRESENT) == first.report.bytes_by(Way.SENT)


def test_other_repository_mounts(layout: Layout, faulty: FaultyRegistry, progress: Recorder) -> None:
    push(layout, faulty, progress)
    done = push(layout, faulty, progress, name="acme/copy:1", mount_from="acme/llm")
    assert done.report.bytes_by(Way.SENT) == 0
    assert done.report.bytes_by(Way.MOUNTED) > 0


def test_names_of_the_layout(layout: Layout, faulty: FaultyRegistry, progress: Recorder) -> None:
    assert sorted(push(layout, faulty, progress, name="acme/llm").tags) == ["1.0", "1.0-pi4", "1.0-x86"]


def test_signatures_for_another_reference_are_told(
    layout: Layout, faulty: FaultyRegistry, progress: Recorder, tmp_path: Path
) -> None:
    assert push(layout, faulty, progress).signed_for == (SIGNED_FOR,)
    assert any(SIGNED_FOR in note and "sign again" in note for note in progress.notes)
    progress.notes.clear()
    own = write_signed_layout(tmp_path / "own", signed_for=f"{faulty.host}/acme/llm:2.0")
    assert push(own, faulty, progress).signed_for == ()
    assert progress.notes == []


def test_signatures_of_others_stay(
    layout: Layout, faulty: FaultyRegistry, progress: Recorder, tmp_path: Path
) -> None:
    push(layout, faulty, progress)
    other = write_signed_layout(tmp_path / "other", signature="b3RoZXI=")
    for pushed in (other, layout, other):
        push(pushed, faulty, progress)
    reference = Reference.parse(f"{faulty.host}/acme/llm:2.0")
    with open_sink(reference, environment={}, progress=progress, limits=FAST) as sink:
        document = json.loads(sink.get_manifest(signature_tag(layout.main().digest)) or b"")
        config = json.loads(b"".join(sink.client.get_blob(Digest.parse(document["config"]["digest"]))))
    found = [layer["annotations"]["dev.cosignproject.cosign/signature"] for layer in document["layers"]]
    assert found == ["c2ln", "b3RoZXI="]
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in document["layers"]]


def test_layout_with_a_missing_blob_is_not_begun(
    layout: Layout, faulty: FaultyRegistry, progress: Recorder
) -> None:
    image = layout.children(layout.main())[0]
    blob_path(layout.path, layout.children(image)[-1].digest).unlink()
    with pytest.raises(ImageError, match="is missing"):
        push(layout, faulty, progress)
    assert faulty.requests == ()


def test_layout_with_a_damaged_blob(layout: Layout, faulty: FaultyRegistry, progress: Recorder) -> None:
    image = layout.children(layout.main())[0]
    model = max(layout.children(image), key=lambda child: child.size_bytes)
    path = blob_path(layout.path, model.digest)
    path.write_bytes(b"!" + path.read_bytes()[1:])
    with pytest.raises(RegistryError, match="400 DIGEST_INVALID"):
        push(layout, faulty, progress)
    assert tags_of(faulty) == ()


def test_another_digest(layout: Layout, faulty: FaultyRegistry, progress: Recorder) -> None:
    with pytest.raises(UsageError, match="names another image"):
        push(layout, faulty, progress, name=f"acme/llm@sha256:{'0' * 64}")


@pytest.mark.parametrize(
    "reference", ["acme/llm:1", "h.example/UPPER:1", "h.example/a:-1", "h.example/a:", "h.example/a@md5:1"]
)
def test_reference_that_cannot_be_parsed(reference: str) -> None:
    with pytest.raises(UsageError) as error:
        Reference.parse(reference)
    assert error.value.hint


PASSING = [
    pytest.param(Answer(status=500), "", "", id="500 for a while"),
    pytest.param(Answer(status=429, headers={"Retry-After": "0"}), "", "", id="429"),
    pytest.param(CutRequest(after_bytes=1000), "PATCH", "", id="PATCH cut in the middle"),
    pytest.param(CutRequest(after_bytes=1000, reset=True), "PATCH", "", id="PATCH reset in the middle"),
    pytest.param(CutResponse(), "PUT", "/uploads/", id="answer to the end of an upload lost"),
    pytest.param(CutResponse(), "PUT", "/manifests/", id="answer to a manifest lost"),
]


@pytest.mark.parametrize(("effect", "method", "path"), PASSING)
def test_faults_that_pass(
    layout: Layout, faulty: FaultyRegistry, progress: Recorder, effect: Effect, method: str, path: str
) -> None:
    injection = faulty.inject(effect, method=method, path=path, skip=1, times=1)
    assert push(layout, faulty, progress).tags == TAGS
    assert sorted(tags_of(faulty)) == sorted(TAGS)
    assert injection.hits == 1


DENIED = Answer(status=403, body=b'{"errors":[{"code":"DENIED","message":"requested access is denied"}]}')
READ_ONLY = Answer(
    status=405, body=b'{"errors":[{"code":"UNSUPPORTED","message":"The operation is unsupported."}]}'
)
UNKNOWN = Answer(
    status=404, body=b'{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known"}]}'
)
LASTING: dict[str, tuple[Effect, dict[str, Any], str, str]] = {
    "500 for ever": (Answer(status=500), {}, "500 Internal", "fails"),
    "503 from a manifest on": (
        Answer(status=503),
        {"method": "PUT", "path": "/manifests/", "skip": 3},
        "503",
        "fails",
    ),
    "429 for long": (
        Answer(status=429, headers={"Retry-After": "900"}),
        {"method": "POST"},
        "asked to wait 900 s",
        "wait",
    ),
    "every PATCH cut": (CutRequest(after_bytes=1000), {"method": "PATCH", "skip": 1}, "gave up", "reached"),
    "denied": (DENIED, {"method": "POST"}, "403 DENIED", "permission"),
    "read-only": (READ_ONLY, {"method": "POST"}, "405 UNSUPPORTED", "read-only"),
    "name unknown": (UNKNOWN, {"method": "POST"}, "404 NAME_UNKNOWN", "created first"),
    "manifests denied": (DENIED, {"method": "PUT", "path": "/manifests/"}, "403 DENIED", "permission"),
    "hang": (Hang(), {"method": "PATCH"}, "did not answer in time", "reached"),
    "lie about a blob": (
        WrongDigest(),
        {"method": "PUT", "path": "/uploads/"},
        "says it is sha256:000",
        "hostile",
    ),
    "lie about a manifest": (
        WrongDigest(),
        {"method": "PUT", "path": "/manifests/"},
        "says it is sha256:000",
        "hostile",
    ),
}


@pytest.mark.parametrize("name", LASTING)
def test_faults_that_last_leave_the_tags_as_they_were(
    layout: Layout, faulty: FaultyRegistry, progress: Recorder, tmp_path: Path, name: str
) -> None:
    effect, where, message, hint = LASTING[name]
    push(layout, faulty, progress)
    newer = write_signed_layout(tmp_path / "newer", model_bytes=210_000)
    before = {tag: faulty.store.manifest("acme/llm", tag) for tag in TAGS}
    faulty.inject(effect, times=None, **where)
    with pytest.raises(EdgebuildError) as error:
        push(newer, faulty, progress)
    assert message in error.value.message
    assert "\n" not in error.value.message
    assert hint in error.value.hint
    assert error.value.exit_code == 7
    assert {tag: faulty.store.manifest("acme/llm", tag) for tag in TAGS} == before


def test_registry_that_takes_no_parts(layout: Layout, tmp_path: Path, progress: Recorder) -> None:
    with FaultyRegistry(tmp_path / "registry", takes_chunks=False) as registry:
        assert push(layout, registry, progress).tags == TAGS


def test_login(layout: Layout, tmp_path: Path, progress: Recorder) -> None:
    login = TokenLogin(uses=3)
    with FaultyRegistry(tmp_path / "registry", login=login) as registry:
        with pytest.raises(RegistryError, match="401") as error:
            push(layout, registry, progress)
        assert "log in first" in error.value.hint
        assert tags_of(registry) == ()
        config = tmp_path / "config.json"
        config.write_text(
            json.dumps({"auths": {registry.host: {"username": "edge", "password": "loopback-only"}}})
        )
        environment = {"DOCKER_CONFIG": str(tmp_path)}
        assert push(layout, registry, progress, environment=environment).tags == TAGS
        assert len(login.scopes) > 5  # tokens ended in the middle, again and again
        config.write_text(json.dumps({"auths": {registry.host: {"identitytoken": "identity"}}}))
        assert push(layout, registry, progress, environment=environment).tags == TAGS

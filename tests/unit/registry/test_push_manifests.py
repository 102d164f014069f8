"""Manifests, tags and referrers on their way to a registry."""

import hashlib
import json
import re

import pytest

from edgebuild.errors import RegistryError
from edgebuild.oci.descriptor import INDEX, MANIFEST, Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.registry.signatures import merge_signatures
from tests.unit.registry.conftest import MakeDouble, OpenSink
from tests.unit.registry.double import UPLOADS, Double, Handler, make_manifest


def test_manifest_and_tag(double: Double, sink_of: OpenSink) -> None:
    sink = sink_of(double)
    raw, descriptor = make_manifest()
    sink.put_manifest(raw, descriptor)
    assert double.tag_names() == []
    sink.tag(descriptor, "1.4")
    sink.tag(descriptor, "1.4-pi4")
    assert double.tag_names() == ["1.4", "1.4-pi4"]
    assert sink.get_manifest("1.4") == raw
    assert sink.get_manifest(str(descriptor.digest)) == raw
    assert sink.get_manifest("2.0") is None
    assert sink.report().tags == ("1.4", "1.4-pi4")


def test_tag_of_a_manifest_pushed_earlier(double: Double, sink_of: OpenSink) -> None:
    raw, descriptor = make_manifest()
    sink_of(double).put_manifest(raw, descriptor)
    sink_of(double).tag(descriptor, "1.5")
    assert double.tag_names() == ["1.5"]


def test_registry_lies_about_a_manifest(double: Double, sink_of: OpenSink) -> None:
    raw, descriptor = make_manifest()
    double.fault("PUT", "/manifests/", status=201, headers={"Docker-Content-Digest": f"sha256:{'1' * 64}"})
    with pytest.raises(RegistryError, match=rf"says it is sha256:1+, but it is {descriptor.digest}"):
        sink_of(double).put_manifest(raw, descriptor)
    assert double.tag_names() == []


def test_referrer_with_the_api(make_double: MakeDouble, sink_of: OpenSink) -> None:
    double = make_double(referrers=True)
    sink = sink_of(double)
    image, subject = make_manifest()
    sink.put_manifest(image, subject)
    raw, descriptor = make_manifest("signature", artifactType="a/b", subject=subject.to_json())
    sink.put_referrer(raw, descriptor, subject.digest)
    assert double.tag_names() == []
    assert [d.digest for d in sink.client.list_referrers(subject.digest)] == [descriptor.digest]


def test_referrer_without_the_api(double: Double, sink_of: OpenSink) -> None:
    sink = sink_of(double)
    image, subject = make_manifest()
    sink.put_manifest(image, subject)
    for text in ("first", "second", "first"):
        raw, bare = make_manifest(text, artifactType="a/b", subject=subject.to_json())
        descriptor = Descriptor(
            media_type=MANIFEST,
            digest=bare.digest,
            size_bytes=bare.size_bytes,
            annotations={"k": text},
            artifact_type="a/b",
        )
        sink.put_referrer(raw, descriptor, subject.digest)
    tag = f"sha256-{subject.digest.hex}"
    assert double.tag_names() == [tag]
    index = json.loads(sink.get_manifest(tag) or b"")
    assert index["mediaType"] == INDEX
    found = [(e["artifactType"], e["annotations"]) for e in index["manifests"]]
    assert found == [("a/b", {"k": "first"}), ("a/b", {"k": "second"})]
    assert sink.client.list_referrers(subject.digest) == ()
    assert len(sink.client.referrers(subject.digest, artifact_type="a/b")) == 2
    assert sink.client.referrers(subject.digest, artifact_type="c/d") == ()


def test_referrer_that_another_signer_overwrites(double: Double, sink_of: OpenSink) -> None:
    sink = sink_of(double)
    image, subject = make_manifest()
    sink.put_manifest(image, subject)
    raw, descriptor = make_manifest("mine", subject=subject.to_json())
    tag = f"sha256-{subject.digest.hex}"
    theirs = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()

    def overwrite(handler: Handler) -> None:
        handler.read_body()
        digest = f"sha256:{hashlib.sha256(theirs).hexdigest()}"
        double.state.manifests["acme/llm", digest] = (INDEX, theirs)
        double.state.tags["acme/llm", tag] = digest
        handler.answer(201)

    fault = double.fault("PUT", f"/manifests/{re.escape(tag)}", action=overwrite)
    sink.put_referrer(raw, descriptor, subject.digest)
    assert str(descriptor.digest) in (sink.get_manifest(tag) or b"").decode()
    fault.times = -1
    raw, descriptor = make_manifest("again", subject=subject.to_json())
    with pytest.raises(RegistryError, match="lost its new entry 3 times"):
        sink.put_referrer(raw, descriptor, subject.digest)


def test_access_is_checked_without_a_trace(double: Double, sink_of: OpenSink) -> None:
    sink_of(double).check_access()
    assert double.state.sessions == {}
    double.fault("POST", UPLOADS, status=403)
    with pytest.raises(RegistryError, match="403"):
        sink_of(double).check_access()


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b'{"layers":[{}]}',
        b'{"layers":[{"mediaType":"a/b","digest":"sha256:%s","size":1}]}' % (b"0" * 64),
    ],
)
def test_signatures_are_not_joined_with_something_else(double: Double, sink_of: OpenSink, raw: bytes) -> None:
    sink = sink_of(double)
    tag = f"sha256-{'1' * 64}.sig"
    foreign = Descriptor(media_type=MANIFEST, digest=Digest.of(raw), size_bytes=len(raw))
    sink.put_manifest(raw, foreign)
    sink.tag(foreign, tag)
    with pytest.raises(RegistryError, match=r"\.sig names something else than signatures"):
        merge_signatures(sink, *make_manifest(layers=[]), tag)
    assert sink.get_manifest(tag) == raw

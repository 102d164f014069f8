"""Finding signatures: one right one is enough, whatever lies beside it, and none of the wrong ones ever is."""

import base64
import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.signing.bundle import (
    EMPTY_CONFIG,
    make_bundle,
    make_referral,
    make_signature_statement,
    make_statement,
)
from edgebuild.signing.keys import SigningKey, make_key
from edgebuild.signing.sign import sign_image
from edgeverify import VerificationError, verify_image, verify_tree
from edgeverify.bundle import BUNDLE, COSIGN_SIGN
from edgeverify.image import CANDIDATES
from tests.support.memory_repository import MemoryRepository

KEY = make_key()
STRANGER = make_key()
SPDX = "https://spdx.dev/Document"
NAMES = st.sampled_from(
    ["mediaType", "artifactType", "layers", "manifests", "config", "subject", "digest", "size", "annotations"]
)
PUBLISHED = Reference.parse("reg.example/acme/llm:1.4")


@pytest.fixture(params=[False, True], ids=["fallback-tag", "referrers-api"])
def repository(request: pytest.FixtureRequest) -> MemoryRepository:
    return MemoryRepository(has_referrers_api=request.param)


def sign(repository: MemoryRepository, image: Digest, key: SigningKey = KEY, *, form: str = "both") -> None:
    """Sign in one form or both."""
    sign_image(repository, image, key, references=(PUBLISHED,) if form != "bundle" else (), epoch_s=0)
    if form == "legacy":
        drop_bundles(repository)


def drop_bundles(repository: MemoryRepository) -> None:
    for tag in [tag for tag in repository.tags if not tag.endswith(".sig")]:
        del repository.tags[tag]
    for digest in [key for key, raw in repository.manifests.items() if b'"subject"' in raw]:
        del repository.manifests[digest]


def attach(
    repository: MemoryRepository, bundle: bytes, subject: Digest, *, predicate_type: str = COSIGN_SIGN
) -> None:
    """Attach any bundle to any image."""
    descriptor = Descriptor(
        media_type="i", digest=subject, size_bytes=len(repository.manifests[str(subject)])
    )
    referral = make_referral(bundle, subject=descriptor, predicate_type=predicate_type, epoch_s=None)
    for data in (bundle, EMPTY_CONFIG):
        repository.put_blob(Blob.of_bytes(data), digest=None, title="bundle")
    repository.put_referrer(referral.manifest, referral.descriptor, subject)


def refusal(repository: MemoryRepository, image: Digest, **asked: str) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        verify_image(repository, str(image), KEY.public, **asked)
    return caught.value


@pytest.mark.parametrize("form", ["legacy", "bundle"])
def test_either_form_alone_is_enough(repository: MemoryRepository, form: str) -> None:
    image = repository.add_image()
    sign(repository, image, form=form)
    assert verify_image(repository, str(image), KEY.public).form == form
    assert len(verify_tree(repository, str(image), KEY.public).signatures) == 3


def test_unsigned_is_refused(repository: MemoryRepository) -> None:
    error = refusal(repository, repository.add_image())
    assert error.message.endswith("is not signed: nothing is attached to it")
    assert error.reasons == ()


@pytest.mark.parametrize("form", ["legacy", "bundle"])
def test_anothers_signature_is_refused_with_a_reason_each(repository: MemoryRepository, form: str) -> None:
    image = repository.add_image()
    sign(repository, image, STRANGER, form=form)
    error = refusal(repository, image)
    assert len(error.reasons) == 1
    assert "not by this key" in error.message


@pytest.mark.parametrize(("ours", "theirs"), [("legacy", "bundle"), ("bundle", "legacy"), ("both", "both")])
def test_a_right_one_beside_strangers_is_accepted(
    repository: MemoryRepository, ours: str, theirs: str
) -> None:
    image = repository.add_image()
    if ours == "legacy":
        sign(repository, image, form="legacy")
        sign(repository, image, STRANGER, form=theirs)
    else:
        sign(repository, image, STRANGER, form=theirs)
        sign(repository, image, form=ours)
    verify_tree(repository, str(image), KEY.public)
    verify_tree(repository, str(image), STRANGER.public)


def test_a_stripped_manifest_is_refused_although_the_index_is_signed(repository: MemoryRepository) -> None:
    image = repository.add_image()
    sign(repository, image, form="legacy")
    child = json.loads(repository.manifests[str(image)])["manifests"][1]["digest"]
    del repository.tags[f"{child.replace(':', '-')}.sig"]
    verify_image(repository, str(image), KEY.public)
    with pytest.raises(VerificationError, match=f"{child} is not signed: nothing is attached"):
        verify_tree(repository, str(image), KEY.public)


def test_an_attestation_is_no_signature(repository: MemoryRepository) -> None:
    image = repository.add_image()
    attestation = make_bundle(make_statement(image, predicate_type=SPDX, predicate={}), KEY)
    attach(repository, attestation, image, predicate_type=SPDX)
    assert "it is an attestation ('https://spdx.dev/Document')" in refusal(repository, image).message
    # Nor does it become one when the manifest around it says so.
    attach(repository, attestation, image)
    error = refusal(repository, image)
    assert f"the statement is a '{SPDX}'" in error.reasons[1]


def test_a_signature_of_another_image_is_none_of_this_one(repository: MemoryRepository) -> None:
    image, other = repository.add_image("this"), repository.add_image("other")
    attach(repository, make_bundle(make_signature_statement(other), KEY), image)
    assert f"not about {image}" in refusal(repository, image).message

    sign(repository, other)
    repository.tags[f"sha256-{image.hex}.sig"] = repository.tags[f"sha256-{other.hex}.sig"]
    assert f"the payload is about '{other}'" in refusal(repository, image).message


def test_a_fallback_tag_copied_from_another_image_is_refused() -> None:
    repository = MemoryRepository()
    image, other = repository.add_image("this"), repository.add_image("other")
    sign(repository, other, form="bundle")
    repository.tags[f"sha256-{image.hex}"] = repository.tags[f"sha256-{other.hex}"]
    assert "the manifest is about another image" in refusal(repository, image).message


def test_changed_bytes_are_refused_wherever_they_are(repository: MemoryRepository) -> None:
    image = repository.add_image()
    sign(repository, image, form="legacy")
    layer = json.loads(repository.manifest(f"sha256-{image.hex}.sig") or b"")["layers"][0]
    good = repository.blobs[layer["digest"]]
    repository.blobs[layer["digest"]] = good.replace(b"1.4", b"1.5")
    assert "has the bytes of" in refusal(repository, image).message
    # The registry's owner makes all digests fit; the signature does not.
    changed = repository.add_blob(good.replace(b"1.4", b"1.5"))
    repository.add_manifest({"layers": [layer | changed]}, f"sha256-{image.hex}.sig")
    assert "not by this key" in refusal(repository, image).message


def test_the_name_can_be_asked_for(repository: MemoryRepository) -> None:
    image = repository.add_image()
    sign(repository, image)
    verify_image(repository, str(image), KEY.public, reference="reg.example/acme/llm:1.4")
    error = refusal(repository, image, reference="reg.example/acme/llm:1.3")
    assert "names 'reg.example/acme/llm:1.4', not 'reg.example/acme/llm:1.3'" in error.message
    assert any("a bundle names no image" in reason for reason in error.reasons)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"not json",
        b"[" * 50_000,
        b"[]",
        b'{"layers": {}, "manifests": 3}',
        b'{"layers": [1, null, {}], "manifests": [1, null, {}, {"digest": 7}, {"digest": "sha256:../../x"}]}',
        json.dumps({"manifests": [{"digest": f"sha256:{'0' * 64}"}] * 3}).encode(),
        json.dumps({"layers": [{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json"}]}).encode(),
        b"x" * (5 << 20),
    ],
)
def test_broken_candidates_do_no_harm_beside_a_right_one(broken: bytes) -> None:
    for tag, form in ((".sig", "bundle"), ("", "legacy")):
        repository = MemoryRepository()
        image = repository.add_image()
        sign(repository, image, form=form)
        repository.add_manifest(broken, f"sha256-{image.hex}{tag}")
        assert verify_image(repository, str(image), KEY.public).form == form
        for name in [name for name in repository.tags if name != f"sha256-{image.hex}{tag}"]:
            del repository.tags[name]
        refusal(repository, image)


@pytest.mark.parametrize("size", [-1, 1 << 40, "9", None, 1.5, True])
def test_a_descriptor_that_claims_a_wrong_size_is_not_fetched(size: object) -> None:
    repository = MemoryRepository()
    image = repository.add_image()
    sign(repository, image, form="legacy")
    manifest = json.loads(repository.manifest(f"sha256-{image.hex}.sig") or b"")
    manifest["layers"][0]["size"] = size
    repository.add_manifest(manifest, f"sha256-{image.hex}.sig")
    repository.reads.clear()
    assert "bytes; at most" in refusal(repository, image).message
    assert manifest["layers"][0]["digest"] not in repository.reads


def test_the_effort_is_bounded_and_says_so() -> None:
    repository = MemoryRepository()
    image = repository.add_image()
    payload = repository.add_blob(b"{}")
    annotations = {"dev.cosignproject.cosign/signature": base64.b64encode(STRANGER.sign(b"{}")).decode()}
    layer = {"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "annotations": annotations}
    repository.add_manifest({"layers": [layer | payload] * 1000}, f"sha256-{image.hex}.sig")
    error = refusal(repository, image)
    assert error.reasons[0].endswith(f"has 1000 candidates; only the first {CANDIDATES} are tried")
    assert repository.reads.count(payload["digest"]) == CANDIDATES


def test_both_lists_of_referrers_are_read() -> None:
    # A registry that learned the API keeps the tags that were pushed before.
    repository = MemoryRepository()
    image = repository.add_image()
    sign(repository, image, form="bundle")
    repository.has_referrers_api = True
    attach(repository, make_bundle(make_signature_statement(image), STRANGER), image)
    verify_image(repository, str(image), KEY.public)
    verify_image(repository, str(image), STRANGER.public)


class TestTree:
    def signed(self) -> tuple[MemoryRepository, Digest]:
        repository = MemoryRepository()
        image = repository.add_image()
        sign(repository, image)
        return repository, image

    def test_hashes_every_blob_once(self) -> None:
        repository, image = self.signed()
        verified = verify_tree(repository, str(image), KEY.public)
        assert verified.blob_count == 4
        assert verified.blob_bytes == sum(
            len(data) for data in repository.blobs.values() if data.startswith(b"image ")
        )
        assert verified.signatures[0][0] == str(image)

    def test_blobs_can_be_left_to_the_engine(self) -> None:
        repository, image = self.signed()
        repository.reads.clear()
        assert verify_tree(repository, str(image), KEY.public, hash_blobs=False).blob_count == 0
        assert str(Digest.of(b"image layer pi4")) not in repository.reads

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"image layer PI4", "has the bytes of"),
            (b"image layer pi4 and more", "more than the 15 bytes"),
            (b"image", "has 5 bytes, its descriptor says 15"),
        ],
    )
    def test_a_changed_blob_is_refused(self, content: bytes, message: str) -> None:
        repository, image = self.signed()
        repository.blobs[str(Digest.of(b"image layer pi4"))] = content
        with pytest.raises(VerificationError, match=message):
            verify_tree(repository, str(image), KEY.public)

    def test_a_missing_blob_and_manifest_are_refused(self) -> None:
        repository, image = self.signed()
        del repository.blobs[str(Digest.of(b"image layer x86"))]
        with pytest.raises(VerificationError, match="is not there"):
            verify_tree(repository, str(image), KEY.public)
        del repository.manifests[json.loads(repository.manifests[str(image)])["manifests"][0]["digest"]]
        with pytest.raises(VerificationError, match="is not there"):
            verify_tree(repository, str(image), KEY.public)

    def test_other_bytes_under_the_digest_are_refused(self) -> None:
        repository, image = self.signed()
        repository.manifests[str(image)] += b" "
        with pytest.raises(VerificationError, match="has the bytes of"):
            verify_tree(repository, str(image), KEY.public)

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ({"manifests": [], "layers": []}, "neither clearly"),
            ({}, "neither clearly"),
            ({"mediaType": "application/vnd.oci.image.index.v1+json", "layers": []}, "neither clearly"),
            ({"mediaType": "application/vnd.oci.image.manifest.v1+json", "manifests": []}, "neither clearly"),
            ({"manifests": [1]}, "lists something else"),
            ({"manifests": [{}] * 300}, "lists something else"),
            ({"config": {}, "layers": [{}]}, "not a sha256 digest"),
            ({"layers": []}, "lists something else"),
            ({"config": {"digest": f"sha256:{'0' * 64}", "size": -1}, "layers": []}, "has the size -1"),
        ],
    )
    def test_ambiguous_and_broken_documents_are_refused_though_signed(
        self, document: dict[str, object], message: str
    ) -> None:
        repository = MemoryRepository()
        image = Digest.parse(repository.add_manifest(document))
        attach(repository, make_bundle(make_signature_statement(image), KEY), image)
        with pytest.raises(VerificationError, match=message):
            verify_tree(repository, str(image), KEY.public)

    def test_an_index_in_an_index_is_refused(self) -> None:
        repository = MemoryRepository()
        inner = repository.add_image()
        image = Digest.parse(repository.add_manifest({"manifests": [{"digest": str(inner)}]}))
        attach(repository, make_bundle(make_signature_statement(image), KEY), image)
        with pytest.raises(VerificationError, match="holds another index"):
            verify_tree(repository, str(image), KEY.public)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=9)
    | st.sampled_from([BUNDLE, f"sha256:{'0' * 64}"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(NAMES, children, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(legacy=JSON, index=JSON, manifest=JSON, image=st.dictionaries(NAMES, JSON))
def test_any_documents_are_refused_with_the_one_error(
    legacy: object, index: object, manifest: object, image: dict[str, object]
) -> None:
    repository = MemoryRepository()
    subject = Digest.parse(repository.add_manifest(image))
    repository.add_manifest(legacy, f"sha256-{subject.hex}.sig")
    repository.add_manifest(index, f"sha256-{subject.hex}")
    refusal(repository, subject)
    listed = repository.add_manifest(manifest)
    repository.add_manifest({"manifests": [{"digest": listed}]}, f"sha256-{subject.hex}")
    refusal(repository, subject)
    sign_bundle = make_bundle(make_signature_statement(subject), KEY)
    attach(repository, sign_bundle, subject)
    with contextlib.suppress(VerificationError):
        verify_tree(repository, str(subject), KEY.public)

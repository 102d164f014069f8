"""Signing an image: what is written, where, once."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from edgebuild.errors import ImageError, SignatureError, UsageError
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import add_referrer
from edgebuild.progress import SilentProgress
from edgebuild.signing.keys import SigningKey, make_key
from edgebuild.signing.payload import make_payload
from edgebuild.signing.sign import Signed, sign_image
from edgebuild.signing.verify import NotVerifiedError, verify_in_registry
from edgeverify import verify_image, verify_tree
from tests.support.memory_repository import MemoryRepository
from tests.vectors.signing.make_vectors import VECTORS, make

KEY = make_key()
TAGGED = Reference.parse("reg.example/acme/llm:1.4")


def sign(
    repository: MemoryRepository,
    image: Digest,
    *references: Reference,
    key: SigningKey = KEY,
    epoch_s: int | None = 0,
) -> tuple[Signed, ...]:
    return sign_image(repository, image, key, references=references, epoch_s=epoch_s)


def children(repository: MemoryRepository, image: Digest) -> list[str]:
    return [entry["digest"] for entry in json.loads(repository.manifests[str(image)])["manifests"]]


def payloads(repository: MemoryRepository, digest: str) -> list[bytes]:
    manifest = json.loads(repository.manifest(f"{digest.replace(':', '-')}.sig") or b"{}")
    return [repository.blobs[layer["digest"]] for layer in manifest.get("layers", [])]


def test_the_vectors_are_what_edgebuild_writes() -> None:
    assert {name: (VECTORS / name).read_bytes() for name in make()} == make()


def test_payload_and_statement_have_cosigns_bytes() -> None:
    theirs = (VECTORS / "cosign2-payload.json").read_bytes()
    named = json.loads(theirs)["critical"]
    digest = Digest.parse(named["image"]["docker-manifest-digest"])
    assert make_payload(digest, named["identity"]["docker-reference"]) == theirs
    ours, other = (
        json.loads((VECTORS / f"{name}-bundle.json").read_bytes()) for name in ("edgebuild", "cosign3")
    )
    for bundle in (ours, other):
        del bundle["dsseEnvelope"]["signatures"][0]["sig"]
    assert ours == other


def test_both_forms_on_the_index_and_every_manifest() -> None:
    repository = MemoryRepository()
    image = repository.add_image()
    pi4, x86 = children(repository, image)
    signed = sign(repository, image, TAGGED)
    assert [(str(item.digest), item.references) for item in signed] == [
        (pi4, ("reg.example/acme/llm:1.4", "reg.example/acme/llm:1.4-pi4")),
        (x86, ("reg.example/acme/llm:1.4", "reg.example/acme/llm:1.4-x86")),
        (str(image), ("reg.example/acme/llm:1.4",)),
    ]
    for item in signed:
        assert payloads(repository, str(item.digest)) == [
            make_payload(item.digest, reference) for reference in item.references
        ]
        listed = json.loads(repository.manifest(f"sha256-{item.digest.hex}") or b"")["manifests"]
        assert [entry["artifactType"] for entry in listed] == [
            "application/vnd.dev.sigstore.bundle.v0.3+json"
        ]
        for reference in item.references:
            verify_image(repository, str(item.digest), KEY.public, reference=reference)
    assert not repository.tags.keys() & {"1.4", "1.4-pi4"}, "naming the image is not the signer's"


def test_without_a_tag_only_bundles() -> None:
    repository = MemoryRepository()
    image = repository.add_image()
    by_digest = TAGGED.with_digest(image)
    assert [item.references for item in sign(repository, image, by_digest)] == [(), (), ()]
    assert not [tag for tag in repository.tags if tag.endswith(".sig")]
    assert verify_tree(repository, str(image), KEY.public).signatures[0][1].form == "bundle"


def test_one_manifest_alone_can_be_signed() -> None:
    repository = MemoryRepository()
    child = Digest.parse(children(repository, repository.add_image())[0])
    assert [item.digest for item in sign(repository, child, TAGGED)] == [child]
    verify_tree(repository, str(child), KEY.public)


@pytest.mark.parametrize("api", [False, True])
def test_signing_twice_changes_nothing(api: bool) -> None:
    repository = MemoryRepository(has_referrers_api=api)
    image = repository.add_image()
    sign(repository, image, TAGGED)
    before = dict(repository.tags), dict(repository.manifests), dict(repository.blobs)
    sign(repository, image, TAGGED)
    assert (repository.tags, repository.manifests, repository.blobs) == before


def test_another_time_of_creation_adds_no_second_bundle() -> None:
    repository = MemoryRepository()
    image = repository.add_image()
    sign(repository, image, TAGGED, epoch_s=None)
    before = dict(repository.tags), dict(repository.manifests), dict(repository.blobs)
    sign(repository, image, TAGGED, epoch_s=1_577_836_800)
    assert (repository.tags, repository.manifests, repository.blobs) == before


def test_two_places_get_the_same_bytes() -> None:
    first, second = MemoryRepository(), MemoryRepository()
    for repository in (first, second):
        sign(repository, repository.add_image(), TAGGED)
    assert first.manifests == second.manifests
    assert first.tags == second.tags


def test_another_tag_and_another_signer_are_added() -> None:
    repository = MemoryRepository()
    image = repository.add_image()
    sign(repository, image, TAGGED)
    sign(repository, image, TAGGED.with_tag("latest"))
    assert payloads(repository, str(image)) == [
        make_payload(image, f"reg.example/acme/llm:{tag}") for tag in ("1.4", "latest")
    ]
    stranger = make_key()
    sign(repository, image, TAGGED, key=stranger)
    assert len(payloads(repository, str(image))) == 3
    manifest = json.loads(repository.manifest(f"sha256-{image.hex}.sig") or b"")
    config = json.loads(repository.blobs[manifest["config"]["digest"]])
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    assert len(config["history"]) == 3
    for key in (KEY, stranger):
        verify_tree(repository, str(image), key.public)


def test_what_cosign_signed_with_our_key_is_not_signed_again() -> None:
    # cosign's nonce is random, so its signature has other bytes for the same payload.
    repository = MemoryRepository()
    image = repository.add_image()
    theirs = KEY.private.sign(make_payload(image, str(TAGGED)), ec.ECDSA(hashes.SHA256()))
    sign(repository, image, TAGGED)
    manifest = json.loads(repository.manifest(f"sha256-{image.hex}.sig") or b"")
    manifest["layers"][0]["annotations"] = {
        "dev.cosignproject.cosign/signature": base64.b64encode(theirs).decode()
    }
    digest = repository.add_manifest(manifest, f"sha256-{image.hex}.sig")
    sign(repository, image, TAGGED)
    assert repository.tags[f"sha256-{image.hex}.sig"] == digest


class TestRefused:
    def test_what_is_not_there(self) -> None:
        repository = MemoryRepository()
        with pytest.raises(SignatureError, match="is not there to be signed"):
            sign(repository, Digest.of(b"nothing"), TAGGED)
        image = repository.add_image()
        del repository.manifests[children(repository, image)[1]]
        with pytest.raises(SignatureError, match="is not there to be signed"):
            sign(repository, image, TAGGED)
        assert repository.tags == {}, "nothing may be half signed"

    @pytest.mark.parametrize("raw", [b"not json", b"[]", b'{"manifests": [{}]}', b'{"manifests": [1]}'])
    def test_what_is_no_image(self, raw: bytes) -> None:
        repository = MemoryRepository()
        with pytest.raises(SignatureError, match="is not an image"):
            sign(repository, Digest.parse(repository.add_manifest(raw)), TAGGED)

    @pytest.mark.parametrize("raw", [b"not json", b'{"layers": [{}]}', b'{"layers": [{"mediaType": "x"}]}'])
    def test_something_else_where_signatures_belong(self, raw: bytes) -> None:
        repository = MemoryRepository()
        image = repository.add_image()
        repository.add_manifest(raw, f"sha256-{image.hex}.sig")
        with pytest.raises(SignatureError, match="names something else than signatures"):
            sign(repository, image, TAGGED)

    @pytest.mark.parametrize(
        "raw", [b"not json", b"[]", b"{}", b'{"manifests": [1.5]}', b'{"manifests": ["\\ud800"]}']
    )
    def test_something_else_where_referrers_belong(self, raw: bytes) -> None:
        repository = MemoryRepository()
        image = repository.add_image()
        repository.add_manifest(raw, f"sha256-{image.hex}")
        with pytest.raises(ImageError, match="is not an image index"):
            sign(repository, image, TAGGED)

    def test_a_profile_that_makes_the_tag_too_long(self) -> None:
        repository = MemoryRepository()
        image = repository.add_image()
        with pytest.raises(UsageError, match="is not a tag"):
            sign(repository, image, TAGGED.with_tag("t" * 126))
        assert repository.tags == {}

    def test_more_signatures_than_verifiers_look_at(self) -> None:
        repository = MemoryRepository()
        image = repository.add_image()
        with pytest.raises(SignatureError, match="130 signatures, more than the 64"):
            sign(repository, image, *(TAGGED.with_tag(f"t{number}") for number in range(65)))


def test_the_index_of_referrers_keeps_what_others_wrote() -> None:
    theirs = b'{"schemaVersion":2,"x":{"y":[null,true]},"manifests":[{"digest":"sha256:1","z":1}]}'
    entry = Descriptor(media_type="m", digest=Digest.of(b"ours"), size_bytes=4)
    after = add_referrer(theirs, entry)
    assert json.loads(after) == json.loads(theirs) | {
        "manifests": [{"digest": "sha256:1", "z": 1}, entry.to_json()]
    }
    assert add_referrer(after, entry) == after


@dataclass(frozen=True)
class MemoryReader:
    repository: MemoryRepository

    def get_manifest(self, reference: str) -> bytes | None:
        return self.repository.get_manifest(reference)

    def list_referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        return tuple(
            Descriptor(
                media_type="m",
                digest=Digest.parse(item.digest),
                size_bytes=0,
                artifact_type=item.artifact_type,
            )
            for item in self.repository.referrers(str(subject))
        )

    def get_blob(self, digest: Digest) -> Iterator[bytes]:
        yield self.repository.blobs[str(digest)]


def test_verify_speaks_edgebuilds_errors() -> None:
    repository = MemoryRepository()
    image = repository.add_image()
    reader = MemoryReader(repository)
    with pytest.raises(NotVerifiedError, match="is not signed") as caught:
        verify_in_registry(reader, image, KEY.public, progress=SilentProgress())
    assert caught.value.exit_code == 8
    assert caught.value.hint
    sign(repository, image, TAGGED)
    verify_in_registry(reader, image, KEY.public, progress=SilentProgress(), reference=str(TAGGED))
    with pytest.raises(NotVerifiedError, match=r"names 'reg.example/acme/llm:1.4', not") as caught:
        verify_in_registry(
            reader, image, KEY.public, progress=SilentProgress(), reference="reg.example/acme/llm:1.3"
        )
    assert len(caught.value.reasons) == 2

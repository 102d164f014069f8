"""What must not pass for a signature: both cosigns and edgebuild refuse it, and the two cases in which they differ."""

import base64
import json
from pathlib import Path

import pytest

from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import INDEX, MANIFEST, Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.index import Index
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import signature_tag
from edgebuild.signing.bundle import (
    make_bundle,
    make_signature_statement,
    make_statement,
)
from edgebuild.signing.sign import _write_bundle, _write_legacy
from edgeverify.bundle import COSIGN_SIGN
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.support.signed_repository import (
    KEY,
    PASSWORD,
    STRANGER,
    Repository,
    attach,
    cosign_2_accepts_bundle,
    cosign_3_bundle,
    cosign_accepts,
    documents,
    move_signature,
    sign,
    write_cosign_files,
)
from tests.support.small_image import publish, small_index

pytestmark = pytest.mark.peers


SPDX = "https://spdx.dev/Document"


@pytest.fixture(scope="module")
def cosign_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cosign_files(tmp_path_factory.mktemp("cosign"))


@pytest.fixture
def repository(registry: Registry, cosign_files: Path) -> Repository:
    return Repository(Reference.parse(registry.reference("acme/llm", "1.4")), cosign_files)


@pytest.fixture
def image(repository: Repository) -> Index:
    """An image in the registry, unsigned."""
    index = small_index()
    with repository.sink() as sink:
        publish(sink, index, tag="1.4")
    return index


class TestRefused:
    def test_an_attestation_instead_of_a_signature(
        self, cosign3: Tool, repository: Repository, image: Index, tmp_path: Path
    ) -> None:
        (tmp_path / "sbom.json").write_text('{"spdxVersion": "SPDX-2.3"}')
        name = repository.at(image.digest)
        cosign3.run(
            "attest",
            "--key",
            repository.folder / "ours.key",
            "--type",
            "spdxjson",
            "--predicate",
            tmp_path / "sbom.json",
            *cosign_3_bundle(repository),
            "--yes",
            name,
            env={"COSIGN_PASSWORD": PASSWORD.decode()},
        )
        # cosign 3.1 takes the SBOM for a signature (security-profiles-operator#3449); the day that it does not, the two
        # key pairs and docs/signing.md lose one of their reasons.
        assert cosign_accepts(cosign3, repository, name)
        assert f"it is an attestation ('{SPDX}'), not a signature" in repository.refusal(image.digest).message

    def test_our_own_attestation_with_a_lying_annotation(
        self, cosign3: Tool, repository: Repository, image: Index
    ) -> None:
        statement = make_statement(image.digest, predicate_type=SPDX, predicate={"spdxVersion": "SPDX-2.3"})
        attach(repository, make_bundle(statement, KEY), image.digest, claimed=COSIGN_SIGN)
        assert f"the statement is a '{SPDX}'" in repository.refusal(image.digest).message
        done = cosign3.run(
            "verify-attestation",
            "--key",
            repository.folder / "ours.pub",
            "--insecure-ignore-tlog",
            "--type",
            "spdxjson",
            repository.at(image.digest),
        )
        assert done.stdout

    def test_a_strangers_bundle_beside_our_legacy_signature(
        self, cosign2: Tool, cosign3: Tool, repository: Repository, image: Index
    ) -> None:
        sign(repository, image, form="legacy")
        for digest in documents(image):
            attach(repository, make_bundle(make_signature_statement(digest), STRANGER), digest)
        name = repository.at(image.digest)
        assert cosign_accepts(cosign2, repository, name)
        assert not cosign_accepts(cosign3, repository, name), "any bundle hides the older form from cosign 3"
        assert cosign_accepts(cosign3, repository, name, "--new-bundle-format=false")
        assert repository.verify(image.digest).signatures[0][1].form == "legacy"

    @pytest.mark.parametrize("form", ["legacy", "bundle"])
    def test_a_strangers_signature(
        self, cosign2: Tool, cosign3: Tool, repository: Repository, image: Index, form: str
    ) -> None:
        sign(repository, image, STRANGER, form=form)
        for cosign in (cosign2, cosign3):
            assert not cosign_accepts(cosign, repository, repository.at(image.digest))
        assert not cosign_2_accepts_bundle(cosign2, repository, repository.at(image.digest))
        assert "not by this key" in repository.refusal(image.digest).message

    def test_the_bundle_of_another_image(
        self, cosign2: Tool, cosign3: Tool, repository: Repository, image: Index
    ) -> None:
        other = small_index("other")
        with repository.sink() as sink:
            publish(sink, other, tag="other")
        attach(repository, make_bundle(make_signature_statement(other.digest), KEY), image.digest)
        assert not cosign_accepts(cosign3, repository, repository.at(image.digest))
        assert not cosign_2_accepts_bundle(cosign2, repository, repository.at(image.digest))
        assert f"not about {image.digest}" in repository.refusal(image.digest).message

    def test_the_legacy_signature_of_another_image(
        self, cosign2: Tool, cosign3: Tool, repository: Repository, image: Index
    ) -> None:
        other = small_index("other")
        with repository.sink() as sink:
            publish(sink, other, tag="other")
        sign(repository, other, form="legacy")
        move_signature(repository, other.digest, image.digest)
        for cosign in (cosign2, cosign3):
            assert not cosign_accepts(cosign, repository, repository.at(image.digest))
        assert f"the payload is about '{other.digest}'" in repository.refusal(image.digest).message

    def test_a_changed_payload(
        self, cosign2: Tool, cosign3: Tool, repository: Repository, image: Index
    ) -> None:
        sign(repository, image, form="legacy")
        with repository.sink() as sink:
            manifest = json.loads(sink.get_manifest(signature_tag(image.digest)) or b"")
            layer = manifest["layers"][0]
            payload = b"".join(sink.client.get_blob(Digest.parse(layer["digest"])))
            changed = payload.replace(b"acme/llm", b"evil/llm")
            assert changed != payload
            digest = sink.put_blob(Blob.of_bytes(changed), digest=None, title="payload")
            raw = json.dumps(manifest | {"layers": [layer | {"digest": str(digest)}]}).encode()
            entry = Descriptor(media_type=MANIFEST, digest=Digest.of(raw), size_bytes=len(raw))
            sink.put_manifest(raw, entry)
            sink.tag(entry, signature_tag(image.digest))
        for cosign in (cosign2, cosign3):
            assert not cosign_accepts(cosign, repository, repository.at(image.digest))
        assert "not by this key" in repository.refusal(image.digest).message

    def test_signatures_that_were_stripped_from_one_manifest(
        self, cosign2: Tool, cosign3: Tool, repository: Repository
    ) -> None:
        index = small_index("stripped")
        child = index.images[1].digest
        with repository.sink() as sink:
            publish(sink, index, tag="1.4")
        sign_alone(repository, index.digest, INDEX)
        sign_alone(repository, index.images[0].digest, MANIFEST)
        for cosign in (cosign2, cosign3):
            assert not cosign_accepts(cosign, repository, repository.at(child))
        assert repository.refusal(index.digest).message == f"{child} is not signed: nothing is attached to it"

    def test_a_message_signature(self, cosign3: Tool, repository: Repository, image: Index) -> None:
        raw = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": KEY.hint}},
            "messageSignature": {
                "messageDigest": {
                    "algorithm": "SHA2_256",
                    "digest": base64.b64encode(bytes.fromhex(image.digest.hex)).decode(),
                },
                "signature": base64.b64encode(KEY.sign(image.raw)).decode(),
            },
        }
        attach(repository, json.dumps(raw).encode(), image.digest)
        assert not cosign_accepts(cosign3, repository, repository.at(image.digest))
        assert "messageSignature" in repository.refusal(image.digest).message

    def test_broken_and_huge_candidates_beside_a_right_one(
        self, repository: Repository, image: Index
    ) -> None:
        for junk in (b"{", b"[" * 100_000, b"x" * (1 << 20)):
            for digest in documents(image):
                attach(repository, junk, digest)
        assert len(repository.refusal(image.digest).reasons) == 3
        sign(repository, image)
        repository.verify(image.digest)


def sign_alone(repository: Repository, digest: Digest, media_type: str) -> None:
    """Sign one document: an index without its manifests, as `cosign sign` without --recursive does."""
    with repository.sink() as sink:
        raw = sink.get_manifest(str(digest)) or b""
        _write_legacy(sink, digest, KEY, (str(repository.reference),))
        _write_bundle(sink, Descriptor(media_type=media_type, digest=digest, size_bytes=len(raw)), KEY, 0)

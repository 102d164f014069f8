"""Both cosigns and skopeo verify what edgebuild signs, edgebuild verifies what both cosigns sign, in a real registry."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgebuild.errors import SignatureError
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import INDEX, MANIFEST, Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.index import Index
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import SignatureSink, signature_tag
from edgebuild.progress import SilentProgress
from edgebuild.registry.client import open_client
from edgebuild.registry.push import RegistrySink, open_sink
from edgebuild.signing.bundle import (
    EMPTY_CONFIG,
    make_bundle,
    make_referral,
    make_signature_statement,
    make_statement,
)
from edgebuild.signing.keys import SigningKey, decrypt_key, encrypt_key, generate_key_pairs, make_key
from edgebuild.signing.sign import _write_bundle, _write_legacy, sign_image
from edgebuild.signing.verify import NotVerifiedError, verify_in_registry
from edgeverify import Verified
from edgeverify.bundle import COSIGN_SIGN
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.support.small_image import publish, small_index

pytestmark = pytest.mark.peers

PASSWORD = b"a pass word"
SPDX = "https://spdx.dev/Document"
KEY = make_key()
STRANGER = make_key()
# No transparency log and no time stamps: signing needs nothing but the registry.
SIGNING_CONFIG = {
    "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
    "rekorTlogConfig": {},
    "tsaConfig": {},
}
TRUSTED_ROOT = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}


@dataclass(frozen=True)
class Repository:
    """A repository of the real registry, and the keys as files for cosign."""

    reference: Reference
    folder: Path

    @contextmanager
    def sink(self) -> Iterator[RegistrySink]:
        with open_sink(self.reference, environment={}, progress=SilentProgress()) as sink:
            yield sink

    def at(self, digest: Digest) -> str:
        return str(self.reference.with_digest(digest))

    def verify(self, digest: Digest, key: SigningKey = KEY, *, reference: str | None = None) -> Verified:
        with open_client(self.reference, environment={}, progress=SilentProgress()) as client:
            return verify_in_registry(
                client, digest, key.public, progress=SilentProgress(), reference=reference
            )

    def refusal(self, digest: Digest, key: SigningKey = KEY) -> NotVerifiedError:
        with pytest.raises(NotVerifiedError) as caught:
            self.verify(digest, key)
        return caught.value


@pytest.fixture(scope="module")
def cosign_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys and the offline configuration as files."""
    folder = tmp_path_factory.mktemp("cosign")
    for name, key in (("ours", KEY), ("strangers", STRANGER)):
        (folder / f"{name}.key").write_bytes(encrypt_key(key, PASSWORD))
        (folder / f"{name}.pub").write_bytes(key.public_pem)
    (folder / "signing-config.json").write_text(json.dumps(SIGNING_CONFIG))
    (folder / "trusted-root.json").write_text(json.dumps(TRUSTED_ROOT))
    return folder


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


def documents(image: Index) -> tuple[Digest, ...]:
    return (image.digest, *(child.digest for child in image.images))


def sign(repository: Repository, image: Index, key: SigningKey = KEY, *, form: str = "both") -> None:
    with repository.sink() as sink:
        target: SignatureSink = LegacyOnly(sink) if form == "legacy" else sink
        references = () if form == "bundle" else (repository.reference,)
        sign_image(target, image.digest, key, references=references, epoch_s=0)


class LegacyOnly:
    """A sink that keeps no referrers, so that only the older form arrives."""

    def __init__(self, sink: RegistrySink) -> None:
        self.put_blob, self.put_manifest = sink.put_blob, sink.put_manifest
        self.tag, self.get_manifest = sink.tag, sink.get_manifest

    def put_referrer(self, raw: bytes, descriptor: Descriptor, subject: Digest) -> None:
        pass


def attach(repository: Repository, bundle: bytes, subject: Digest, *, claimed: str = COSIGN_SIGN) -> None:
    """Attach any bundle to any image."""
    with repository.sink() as sink:
        raw = sink.get_manifest(str(subject))
        assert raw is not None
        about = Descriptor(
            media_type=INDEX if b'"manifests"' in raw else MANIFEST, digest=subject, size_bytes=len(raw)
        )
        referral = make_referral(bundle, subject=about, predicate_type=claimed, epoch_s=None)
        for data in (bundle, EMPTY_CONFIG):
            sink.put_blob(Blob.of_bytes(data), digest=Digest.of(data), title="bundle")
        sink.put_referrer(referral.manifest, referral.descriptor, subject)


def cosign_accepts(
    cosign: Tool, repository: Repository, name: str, *more: str, key: str = "ours.pub", timeout_s: float = 60
) -> bool:
    done = cosign.run(
        "verify",
        "--key",
        repository.folder / key,
        "--insecure-ignore-tlog",
        *more,
        name,
        check=False,
        timeout_s=timeout_s,
    )
    assert "panic" not in done.stderr
    return done.returncode == 0


def cosign_2_accepts_bundle(
    cosign2: Tool, repository: Repository, name: str, *, key: str = "ours.pub"
) -> bool:
    """cosign 2.5 never looks for bundles in `verify`; as an attestation it verifies one."""
    done = cosign2.run(
        "verify-attestation",
        "--key",
        repository.folder / key,
        "--insecure-ignore-tlog",
        "--new-bundle-format",
        "--trusted-root",
        repository.folder / "trusted-root.json",
        "--type",
        COSIGN_SIGN,
        name,
        check=False,
    )
    return done.returncode == 0


def cosign_sign(
    cosign: Tool, repository: Repository, name: str, *how: str | Path, key: str = "ours.key"
) -> None:
    cosign.run(
        "sign",
        "--key",
        repository.folder / key,
        *how,
        "--recursive",
        "--yes",
        name,
        env={"COSIGN_PASSWORD": PASSWORD.decode()},
    )


def cosign_3_bundle(repository: Repository) -> tuple[str | Path, ...]:
    return (
        "--signing-config",
        repository.folder / "signing-config.json",
        "--trusted-root",
        repository.folder / "trusted-root.json",
    )


COSIGN_3_LEGACY = ("--use-signing-config=false", "--tlog-upload=false", "--new-bundle-format=false")


class TestTheyVerifyOurs:
    def test_both_forms_on_the_index_and_every_manifest(
        self, cosign2: Tool, cosign3: Tool, repository: Repository, image: Index
    ) -> None:
        sign(repository, image)
        names = [repository.at(digest) for digest in documents(image)]
        tags = ("1.4", "1.4-pi4", "1.4-x86")
        names += [str(repository.reference.with_tag(tag)) for tag in tags]
        for name in names:
            assert cosign_accepts(cosign2, repository, name), name
            assert cosign_accepts(cosign3, repository, name), name
            assert cosign_accepts(cosign3, repository, name, "--new-bundle-format=false"), name
            assert cosign_2_accepts_bundle(cosign2, repository, name), name
        for cosign in (cosign2, cosign3):
            assert not cosign_accepts(cosign, repository, names[0], key="strangers.pub")

    def test_each_form_alone(self, cosign2: Tool, cosign3: Tool, repository: Repository) -> None:
        for form, seen_by_2 in (("legacy", True), ("bundle", False)):
            index = small_index(form)
            with repository.sink() as sink:
                publish(sink, index, tag="1.4")
            sign(repository, index, form=form)
            for digest in documents(index):
                assert cosign_accepts(cosign3, repository, repository.at(digest))
                assert cosign_accepts(cosign2, repository, repository.at(digest)) is seen_by_2

    def test_beside_signatures_of_cosign(
        self, cosign2: Tool, cosign3: Tool, repository: Repository, image: Index
    ) -> None:
        name = repository.at(image.digest)
        cosign_sign(cosign2, repository, name, "--tlog-upload=false", key="strangers.key")
        cosign_sign(cosign3, repository, name, *cosign_3_bundle(repository), key="strangers.key")
        sign(repository, image)
        for key in ("ours.pub", "strangers.pub"):
            for digest in documents(image):
                assert cosign_accepts(cosign2, repository, repository.at(digest), key=key)
                assert cosign_accepts(cosign3, repository, repository.at(digest), key=key)

    def test_skopeo_with_its_usual_rule_of_identity(
        self, skopeo: Tool, repository: Repository, image: Index, tmp_path: Path
    ) -> None:
        host = repository.reference.registry
        policy = tmp_path / "policy.json"
        rule = {"type": "sigstoreSigned", "keyPath": str(repository.folder / "ours.pub")}
        policy.write_text(
            json.dumps({"default": [{"type": "reject"}], "transports": {"docker": {host: [rule]}}})
        )
        (tmp_path / "registries.d").mkdir()
        (tmp_path / "registries.d/x.yaml").write_text(
            f"docker:\n  {host}:\n    use-sigstore-attachments: true\n"
        )

        def copies(name: str, *more: str) -> bool:
            target = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
            done = skopeo.run(
                "--policy",
                policy,
                "--registries.d",
                tmp_path / "registries.d",
                "--override-arch=arm64",
                "--override-variant=v8",
                "copy",
                "--src-tls-verify=false",
                *more,
                f"docker://{name}",
                f"dir:{target}",
                check=False,
            )
            assert done.returncode == 0 or "signature" in done.stderr, done.describe()
            return done.returncode == 0

        names = [str(repository.reference.with_tag(tag)) for tag in ("1.4", "1.4-pi4")]
        names.append(repository.at(image.digest))
        assert [copies(name) for name in names] == [False] * 3
        sign(repository, image)
        assert [copies(name) for name in names] == [True] * 3
        assert copies(names[0], "--all", "--remove-signatures=false")


class TestWeVerifyTheirs:
    @pytest.mark.parametrize("who", ["cosign 2", "cosign 3", "cosign 3, older form"])
    def test_whatever_cosign_signs(
        self, cosign2: Tool, cosign3: Tool, repository: Repository, image: Index, who: str
    ) -> None:
        assert "nothing is attached" in repository.refusal(image.digest).message
        name = repository.at(image.digest)
        if who == "cosign 2":
            cosign_sign(cosign2, repository, name, "--tlog-upload=false")
        elif who == "cosign 3":
            cosign_sign(cosign3, repository, name, *cosign_3_bundle(repository))
        else:
            cosign_sign(cosign3, repository, name, *COSIGN_3_LEGACY)
        verified = repository.verify(image.digest)
        assert {digest for digest, _ in verified.signatures} == {str(digest) for digest in documents(image)}
        assert {found.form for _, found in verified.signatures} == {
            "bundle" if who == "cosign 3" else "legacy"
        }
        assert verified.blob_count == 4
        assert "not by this key" in repository.refusal(image.digest, STRANGER).message

    def test_cosigns_own_keys(self, cosign2: Tool, cosign3: Tool, tmp_path: Path) -> None:
        for number, (cosign, password) in enumerate(((cosign2, ""), (cosign3, "x y"), (cosign3, ""))):
            cosign.run(
                "generate-key-pair",
                "--output-key-prefix",
                f"pair{number}",
                env={"COSIGN_PASSWORD": password},
                cwd=tmp_path,
            )
            key = decrypt_key((tmp_path / f"pair{number}.key").read_bytes(), password.encode())
            assert key.public_pem == (tmp_path / f"pair{number}.pub").read_bytes()
            with pytest.raises(SignatureError, match="does not open"):
                decrypt_key((tmp_path / f"pair{number}.key").read_bytes(), b"wrong")


def test_they_read_our_keys(cosign2: Tool, cosign3: Tool, tmp_path: Path) -> None:
    pairs = generate_key_pairs(tmp_path, image_password=b"", attestation_password=PASSWORD)
    for pair, password in zip(pairs, ("", PASSWORD.decode()), strict=True):
        for cosign in (cosign2, cosign3):
            shown = cosign.run("public-key", "--key", pair.private, env={"COSIGN_PASSWORD": password})
            assert shown.stdout.strip() == pair.public.read_text().strip()
            wrong = cosign.run(
                "public-key", "--key", pair.private, env={"COSIGN_PASSWORD": "wrong"}, check=False
            )
            assert wrong.returncode != 0


class TestRefused:
    """What each side refuses, and the two cases in which cosign 3.1 and edgebuild differ."""

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
            sign_one(sink, index.digest, repository.reference)
            sign_one(sink, index.images[0].digest, repository.reference)
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


def sign_one(sink: RegistrySink, digest: Digest, reference: Reference) -> None:
    """Sign one document alone: an index without its manifests."""
    raw = sink.get_manifest(str(digest)) or b""
    _write_legacy(sink, digest, KEY, (str(reference),))
    kind = INDEX if b'"manifests"' in raw else MANIFEST
    _write_bundle(sink, Descriptor(media_type=kind, digest=digest, size_bytes=len(raw)), KEY, 0)


def move_signature(repository: Repository, source: Digest, target: Digest) -> None:
    """Give one image's `.sig` manifest to another."""
    with repository.sink() as sink:
        raw = sink.get_manifest(signature_tag(source)) or b""
        entry = Descriptor(media_type=MANIFEST, digest=Digest.of(raw), size_bytes=len(raw))
        sink.tag(entry, signature_tag(target))

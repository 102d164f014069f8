"""Both cosigns and skopeo verify what edgebuild signs; edgebuild verifies what both cosigns sign, in a real registry."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from edgebuild.errors import SignatureError
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import REF_NAME, Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.index import Index
from edgebuild.oci.layout import LayoutSink
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import fallback_tag, signature_tag
from edgebuild.progress import SilentProgress
from edgebuild.signing.keys import decrypt_key, generate_key_pairs
from tests.support.faulty_registry import FaultyRegistry
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.support.signed_repository import (
    COSIGN_3_LEGACY,
    KEY,
    PASSWORD,
    STRANGER,
    Repository,
    cosign_2_accepts_bundle,
    cosign_3_bundle,
    cosign_accepts,
    cosign_sign,
    documents,
    sign,
    write_cosign_files,
)
from tests.support.small_image import publish, small_index

pytestmark = pytest.mark.peers


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


def test_a_registry_that_lists_referrers_itself(cosign3: Tool, cosign_files: Path, tmp_path: Path) -> None:
    # docker-registry 2.8 has no referrers API, and no packaged registry has; the loopback registry does.
    with FaultyRegistry(tmp_path / "registry", has_referrers_api=True) as server:
        repository = Repository(Reference.parse(f"{server.host}/acme/llm:1.4"), cosign_files)
        index = small_index()
        with repository.sink() as sink:
            publish(sink, index, tag="1.4")
        for key in (STRANGER, KEY, KEY):
            sign(repository, index, key, form="bundle")
        for digest in documents(index):
            assert cosign_accepts(cosign3, repository, repository.at(digest))
            with repository.sink() as sink:
                assert len(sink.client.list_referrers(digest)) == 2
                assert sink.get_manifest(fallback_tag(digest)) is None
        assert repository.verify(index.digest).signatures[0][1].form == "bundle"
        name = repository.at(index.digest)
        cosign_sign(cosign3, repository, name, *cosign_3_bundle(repository), key="strangers.key")
        repository.verify(index.digest, STRANGER)


def test_signatures_travel_in_a_layout(
    cosign2: Tool, cosign3: Tool, repository: Repository, tmp_path: Path
) -> None:
    index = small_index()
    layout = tmp_path / "image"
    with LayoutSink(layout, progress=SilentProgress()) as sink:
        publish(sink, index, tag="1.4", key=KEY, references=(repository.reference,))
    blobs = layout / "blobs/sha256"
    with repository.sink() as sink:
        for path in blobs.iterdir():
            sink.put_blob(Blob.of_file(path), digest=Digest(path.name), title=path.name)
        for entry in json.loads((layout / "index.json").read_text())["manifests"]:
            descriptor = Descriptor.from_json(entry)
            raw = (blobs / descriptor.digest.hex).read_bytes()
            for child in json.loads(raw).get("manifests", ()):
                inner = Descriptor.from_json(child)
                sink.put_manifest((blobs / inner.digest.hex).read_bytes(), inner)
            sink.put_manifest(raw, descriptor)
            sink.tag(descriptor, descriptor.annotations[REF_NAME])
    for digest in documents(index):
        for cosign in (cosign2, cosign3):
            assert cosign_accepts(cosign, repository, repository.at(digest))
    repository.verify(index.digest, reference=str(repository.reference))


def test_openssl_alone_verifies_both_forms(repository: Repository, image: Index, tmp_path: Path) -> None:
    """The commands of docs/signing.md, "With openssl alone"."""
    sign(repository, image)
    with repository.sink() as sink:
        legacy = json.loads(sink.get_manifest(signature_tag(image.digest)) or b"")["layers"][0]
        referrer = json.loads(sink.get_manifest(fallback_tag(image.digest)) or b"")["manifests"][0]
        bundle = json.loads(sink.get_manifest(referrer["digest"]) or b"")["layers"][0]
        for name, layer in (("payload", legacy), ("bundle", bundle)):
            content = b"".join(sink.client.get_blob(Digest.parse(layer["digest"])))
            (tmp_path / name).write_bytes(content)
    (tmp_path / "signature.b64").write_text(legacy["annotations"]["dev.cosignproject.cosign/signature"])
    script = section("With openssl alone", "sh")
    environment = {
        "PATH": "/usr/bin:/bin",
        "DIGEST": str(image.digest),
        "KEY": str(repository.folder / "ours.pub"),
    }

    def run(**more: str) -> int:
        argv = ["sh", "-euc", script]
        return subprocess.run(argv, cwd=tmp_path, env=environment | more, check=False).returncode

    assert run() == 0
    assert run(KEY=str(repository.folder / "strangers.pub")) != 0
    assert run(DIGEST=str(Digest.of(b"another"))) != 0


def section(title: str, language: str) -> str:
    """Give the code blocks of one section of docs/signing.md."""
    text = (Path(__file__).parents[2] / "docs/signing.md").read_text()
    body = re.split(r"^#+ ", text.partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(rf"^```{language}\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL)
    assert blocks, f"docs/signing.md has no {language} under {title!r}"
    return "\n".join(blocks)

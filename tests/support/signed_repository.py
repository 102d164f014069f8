"""What the tests of signatures do with a repository: publish, sign in every way, attach anything, ask cosign."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import INDEX, MANIFEST, Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.index import Index
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import SignatureSink, signature_tag
from edgebuild.progress import SilentProgress
from edgebuild.registry.client import open_client
from edgebuild.registry.push import RegistrySink, open_sink
from edgebuild.signing.bundle import EMPTY_CONFIG, make_referral
from edgebuild.signing.keys import SigningKey, encrypt_key, make_key
from edgebuild.signing.sign import sign_image
from edgebuild.signing.verify import NotVerifiedError, verify_in_registry
from edgeverify import Verified
from edgeverify.bundle import COSIGN_SIGN
from tests.support.peers.tool import Tool

PASSWORD = b"a pass word"
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


def write_cosign_files(folder: Path) -> Path:
    """Write the keys and the offline configuration as files for cosign."""
    for name, key in (("ours", KEY), ("strangers", STRANGER)):
        (folder / f"{name}.key").write_bytes(encrypt_key(key, PASSWORD))
        (folder / f"{name}.pub").write_bytes(key.public_pem)
    (folder / "signing-config.json").write_text(json.dumps(SIGNING_CONFIG))
    (folder / "trusted-root.json").write_text(json.dumps(TRUSTED_ROOT))
    return folder


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
        self.tag, self.get_manifest, self.stop = sink.tag, sink.get_manifest, sink.stop

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


def move_signature(repository: Repository, source: Digest, target: Digest) -> None:
    """Give one image's `.sig` manifest to another."""
    with repository.sink() as sink:
        raw = sink.get_manifest(signature_tag(source)) or b""
        entry = Descriptor(media_type=MANIFEST, digest=Digest.of(raw), size_bytes=len(raw))
        sink.tag(entry, signature_tag(target))

"""Both cosigns sign and verify offline with a key pair, in the forms and with the flags that devices rely on."""

import json
from pathlib import Path

import pytest

from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.support.tiny_image import TinyImage, write_tiny_image

pytestmark = pytest.mark.peers

PASSWORD = {"COSIGN_PASSWORD": "a password"}
# No transparency log and no time stamps: signing needs nothing but the registry.
SIGNING_CONFIG = {
    "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
    "rekorTlogConfig": {},
    "tsaConfig": {},
}
TRUSTED_ROOT = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}


@pytest.fixture
def image(tmp_path: Path, busybox_amd64: Path) -> TinyImage:
    return write_tiny_image(tmp_path / "image", programs={"amd64": busybox_amd64})


@pytest.fixture
def pinned(registry: Registry, crane: Tool, image: TinyImage) -> str:
    reference = registry.reference("signed/image")
    crane.run("push", image.layout, reference)
    return f"{reference.rpartition(':')[0]}@{image.digest}"


@pytest.fixture
def keys(cosign2: Tool, tmp_path: Path) -> Path:
    for name in ("ours", "other"):
        cosign2.run("generate-key-pair", "--output-key-prefix", name, env=PASSWORD, cwd=tmp_path)
    return tmp_path


def verify(cosign: Tool, key: Path, pinned: str) -> int:
    return cosign.run("verify", "--key", key, "--insecure-ignore-tlog", pinned, check=False).returncode


def test_they_are_two_generations(cosign2: Tool, cosign3: Tool) -> None:
    # Debian builds both without a version; signing configurations came with the third.
    found = ["signing-config" in cosign.run("help").stdout for cosign in (cosign2, cosign3)]
    assert found == [False, True]


def test_both_verify_the_legacy_form_of_cosign_2(
    cosign2: Tool, cosign3: Tool, keys: Path, pinned: str
) -> None:
    assert verify(cosign2, keys / "ours.pub", pinned) == 10
    cosign2.run("sign", "--key", keys / "ours.key", "--tlog-upload=false", "--yes", pinned, env=PASSWORD)
    for cosign in (cosign2, cosign3):
        assert verify(cosign, keys / "ours.pub", pinned) == 0
        assert verify(cosign, keys / "other.pub", pinned) != 0


def test_cosign_3_signs_as_a_bundle_that_cosign_2_does_not_see(
    cosign2: Tool, cosign3: Tool, crane: Tool, keys: Path, pinned: str, tmp_path: Path
) -> None:
    config, root = tmp_path / "signing-config.json", tmp_path / "trusted-root.json"
    config.write_text(json.dumps(SIGNING_CONFIG), "utf-8")
    root.write_text(json.dumps(TRUSTED_ROOT), "utf-8")
    offline = ("--signing-config", config, "--trusted-root", root)
    cosign3.run("sign", "--key", keys / "ours.key", *offline, "--yes", pinned, env=PASSWORD)
    assert verify(cosign3, keys / "ours.pub", pinned) == 0
    assert verify(cosign3, keys / "other.pub", pinned) != 0
    assert verify(cosign2, keys / "ours.pub", pinned) == 10
    # docker-registry has no referrers API: the bundle hangs on the fallback tag.
    repository, digest = pinned.split("@")
    fallback = json.loads(crane.run("manifest", f"{repository}:{digest.replace(':', '-')}").stdout)
    assert len(fallback["manifests"]) == 1


def test_cosign_3_writes_the_legacy_form_when_told(
    cosign2: Tool, cosign3: Tool, keys: Path, pinned: str
) -> None:
    legacy = ("--use-signing-config=false", "--tlog-upload=false", "--new-bundle-format=false")
    cosign3.run("sign", "--key", keys / "ours.key", *legacy, "--yes", pinned, env=PASSWORD)
    for cosign in (cosign2, cosign3):
        assert verify(cosign, keys / "ours.pub", pinned) == 0


def test_a_wrong_password_is_refused(cosign2: Tool, cosign3: Tool, keys: Path, pinned: str) -> None:
    for cosign, more in ((cosign2, ()), (cosign3, ("--use-signing-config=false",))):
        sign = ("sign", "--key", keys / "ours.key", "--tlog-upload=false", "--yes", *more, pinned)
        wrong = cosign.run(*sign, env={"COSIGN_PASSWORD": "another"}, check=False)
        assert wrong.returncode != 0
        assert "decrypt" in wrong.stderr
        cosign.run(*sign, env=PASSWORD)

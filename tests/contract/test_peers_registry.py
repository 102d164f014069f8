"""The registry and its clients work for real: what one writes the others read."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.support.tiny_image import TinyImage, write_tiny_image

pytestmark = pytest.mark.peers


@pytest.fixture
def image(tmp_path: Path, busybox_amd64: Path, busybox_arm64: Path) -> TinyImage:
    return write_tiny_image(tmp_path / "image", programs={"amd64": busybox_amd64, "arm64": busybox_arm64})


def test_an_empty_registry_answers_on_the_loopback(registry: Registry) -> None:
    with urllib.request.urlopen(f"{registry.url}/v2/") as answer:
        assert answer.status == 200
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert [access.path for access in registry.accesses()] == ["/v2/"]


def test_two_registries_run_side_by_side(make_registry: Callable[..., Registry]) -> None:
    first, second = make_registry(), make_registry()
    assert first.port != second.port
    assert first.storage != second.storage


def test_a_login_is_asked_for_and_accepted(auth_registry: Registry) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{auth_registry.url}/v2/")
    refused.value.close()
    assert refused.value.code == 401
    login = base64.b64encode(f"{auth_registry.username}:{auth_registry.password}".encode()).decode()
    request = urllib.request.Request(f"{auth_registry.url}/v2/", headers={"Authorization": f"Basic {login}"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def test_crane_pushes_and_oras_reads_and_copies(
    registry: Registry, crane: Tool, oras: Tool, image: TinyImage, tmp_path: Path
) -> None:
    reference = registry.reference("tiny/image", "v1")
    crane.run("push", image.layout, reference)
    assert crane.run("digest", reference).stdout.strip() == image.digest
    crane.run("validate", "--remote", reference)

    descriptor = json.loads(oras.run("manifest", "fetch", "--plain-http", "--descriptor", reference).stdout)
    assert descriptor["digest"] == image.digest
    oras.run("cp", "--from-plain-http", "--to-oci-layout", reference, f"{tmp_path / 'copy'}:v1")
    for blob in (image.layout / "blobs/sha256").iterdir():
        assert (tmp_path / "copy/blobs/sha256" / blob.name).read_bytes() == blob.read_bytes()


def test_oras_pushes_and_crane_pulls(
    registry: Registry, crane: Tool, oras: Tool, image: TinyImage, tmp_path: Path
) -> None:
    reference = registry.reference("tiny", "v2")
    oras.run("cp", "--from-oci-layout", "--to-plain-http", f"{image.layout}:latest", reference)
    crane.run("pull", "--platform", "linux/arm64", reference, tmp_path / "image.tar")
    assert (tmp_path / "image.tar").stat().st_size > 500_000
    listed = crane.run("ls", registry.reference("tiny").removesuffix(":latest")).stdout.split()
    assert listed == ["v2"]


def test_clients_log_in_from_a_docker_config(
    auth_registry: Registry, crane: Tool, oras: Tool, image: TinyImage, tmp_path: Path
) -> None:
    reference = auth_registry.reference("tiny")
    refused = crane.run("push", image.layout, reference, check=False)
    assert refused.returncode != 0
    assert "401 Unauthorized" in refused.stderr
    config = auth_registry.write_docker_config(tmp_path / "docker")
    crane.run("push", image.layout, reference, env={"DOCKER_CONFIG": str(config.parent)})
    oras.run("manifest", "fetch", "--plain-http", "--registry-config", config, reference)


def test_skopeo_inspects(registry: Registry, crane: Tool, skopeo: Tool, image: TinyImage) -> None:
    reference = registry.reference("tiny")
    crane.run("push", image.layout, reference)
    raw = skopeo.run("inspect", "--tls-verify=false", "--raw", f"docker://{reference}").stdout
    assert {entry["digest"] for entry in json.loads(raw)["manifests"]} == set(image.manifests.values())


def test_bytes_sent_are_counted(registry: Registry, crane: Tool, image: TinyImage, tmp_path: Path) -> None:
    reference = registry.reference("tiny")
    crane.run("push", image.layout, reference)
    before = len(registry.accesses())
    crane.run("pull", "--platform", "linux/amd64", reference, tmp_path / "image.tar")
    layers = [access for access in registry.accesses()[before:] if "/blobs/" in access.path]
    manifest = json.loads((image.layout / "blobs/sha256" / image.manifests["amd64"][7:]).read_bytes())
    expected = {part["size"] for part in (manifest["config"], *manifest["layers"])}
    assert {access.body_bytes for access in layers if access.method == "GET"} == expected

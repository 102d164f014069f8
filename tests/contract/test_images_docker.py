"""What `edgebuild` pushes and archives, in the hands of others: two Docker generations, crane, oras, both cosigns.

The images are real ones with the demo model; they answer prompts in containers of both daemons, on both processors.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from tests.support.built import ROOT, Built, Edgebuild, make_edgebuild
from tests.support.containers import answer, wait_healthy, wait_ready
from tests.support.fixtures import Peers
from tests.support.peers.docker import DockerDaemon
from tests.support.peers.registry import Registry, running_registry
from tests.support.peers.tool import Tool
from tests.support.signed_repository import (
    COSIGN_3_LEGACY,
    Repository,
    cosign_2_accepts_bundle,
    cosign_3_bundle,
    cosign_accepts,
    cosign_sign,
    write_cosign_files,
)

pytestmark = pytest.mark.peers

UPDATE_LIMIT_BYTES = 1_000_000
# As on a device: nothing but the image's own files, and those read-only. Docker probes after the first interval only.
# One thread: several that wait for each other on a busy machine wait very long.
AS_ON_A_DEVICE = (
    "--env=EDGE_THREADS=1",
    "--read-only",
    "--cap-drop=ALL",
    "--health-interval=2s",
    "--health-timeout=60s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The layout in a registry, signed for its name there."""

    registry: Registry
    reference: str
    built: Built

    def tag(self, profile: str) -> str:
        return f"{self.reference}-{profile}"

    def at(self, digest: str) -> str:
        return f"{self.reference.rpartition(':')[0]}@{digest}"

    @property
    def documents(self) -> tuple[str, ...]:
        """Digests of the index and of every platform's manifest."""
        return self.built.digest, *(image["digest"] for image in self.built.document["images"])


@pytest.fixture(scope="module")
def published(
    built_layout: Built, built_store: Path, peers: Peers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    with contextlib.ExitStack() as stack:
        registry = peers.enter(stack, running_registry(tmp_path_factory.mktemp("published")))
        command = make_edgebuild(tmp_path_factory.mktemp("push"), built_store)
        reference = registry.reference("acme/alert", "1.0")
        told = command.json("push", built_layout.layout, reference, *built_layout.signing)
        assert told["digest"] == built_layout.digest
        assert told["tags"] == ["1.0-x86", "1.0-pi4", "1.0"]
        yield Published(registry=registry, reference=reference, built=built_layout)


@contextlib.contextmanager
def removed_afterwards(dockerd: DockerDaemon, *references: str) -> Iterator[None]:
    """The daemons last a session: an image that stays would not be pulled by the next test."""
    try:
        yield
    finally:
        dockerd.docker("image", "rm", "--force", *references, check=False)


def inspect(dockerd: DockerDaemon, reference: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dockerd.docker("image", "inspect", reference).stdout)[0]
    return found


class TestDocker:
    def test_amd64_is_pulled_by_every_name_and_answers(
        self, dockerd: DockerDaemon, published: Published
    ) -> None:
        image = published.built.image("x86")
        names = (
            published.reference,
            published.tag("x86"),
            published.at(published.built.digest),
            published.at(image["digest"]),
        )
        with removed_afterwards(dockerd, *names):
            for name in names:
                dockerd.docker("pull", name)
                seen = inspect(dockerd, name)
                assert seen["Architecture"] == "amd64"
                assert seen["Config"]["Labels"]["dev.edgebuild.profile"] == "x86"
                if dockerd.version.startswith("20."):
                    assert seen["Id"] == image["config_digest"]
            with dockerd.container(published.reference, publish=8080, args=AS_ON_A_DEVICE) as container:
                assert wait_ready(container)["cpu_variant"]
                assert answer(container) == image["smoke"]["answer"]
                who = "import os; print(os.getuid(), os.getgid())"
                assert container.execute("/usr/bin/python3.13", "-c", who).stdout.split() == [
                    "10001",
                    "10001",
                ]
                write = container.execute("/usr/bin/python3.13", "-c", "open('/tmp/x', 'w')", check=False)
                assert write.returncode != 0
                wait_healthy(container)

    @pytest.mark.usefixtures("arm64_binfmt")
    def test_arm64_answers_on_the_processor_of_its_profile(
        self, dockerd: DockerDaemon, published: Published
    ) -> None:
        name = published.tag("pi4")
        platform = ("--platform", "linux/arm64")
        with removed_afterwards(dockerd, name):
            dockerd.docker("pull", *platform, name)
            assert inspect(dockerd, name)["Architecture"] == "arm64"
            if dockerd.version.startswith("20."):
                assert inspect(dockerd, name)["Id"] == published.built.image("pi4")["config_digest"]
            env = {"QEMU_CPU": "cortex-a72"}
            with dockerd.container(
                name, publish=8080, env=env, args=(*platform, *AS_ON_A_DEVICE)
            ) as container:
                assert wait_ready(container)["cpu_variant"] == "armv8.0_1"
                assert answer(container) == published.built.image("pi4")["smoke"]["answer"]
                wait_healthy(container)

    @pytest.mark.parametrize("profile", ["x86", "pi4"])
    def test_archive_is_loaded(
        self, dockerd: DockerDaemon, edgebuild: Edgebuild, built_layout: Built, profile: str
    ) -> None:
        edgebuild.run("archive", built_layout.layout, "--profile", profile, "--output", "image.tar")
        data = (edgebuild.folder / "image.tar").read_bytes()
        loaded = dockerd.docker("load", stdin=data).stdout
        name = loaded.strip().rpartition("Loaded image: ")[2]
        with removed_afterwards(dockerd, name):
            assert name.endswith(f":{profile}")
            seen = inspect(dockerd, name)
            assert seen["Config"]["Labels"]["dev.edgebuild.profile"] == profile
            assert seen["RootFS"]["Layers"] == [
                layer["diff_id"] for layer in built_layout.image(profile)["layers"]
            ]
            if dockerd.version.startswith("20."):
                assert seen["Id"] == built_layout.image(profile)["config_digest"]
            if profile == "x86":
                with dockerd.container(name, publish=8080, args=AS_ON_A_DEVICE) as container:
                    wait_ready(container)
                    assert answer(container) == built_layout.image("x86")["smoke"]["answer"]

    def test_registry_with_a_login(
        self, dockerd: DockerDaemon, edgebuild: Edgebuild, built_layout: Built, auth_registry: Registry
    ) -> None:
        reference = auth_registry.reference("acme/alert", "1.0")
        auth_registry.write_docker_config(edgebuild.folder / "docker")
        edgebuild.run("push", built_layout.layout, reference)
        with removed_afterwards(dockerd, f"{reference}-x86"):
            assert dockerd.docker("pull", f"{reference}-x86", check=False).returncode != 0
            dockerd.write_login(auth_registry)
            dockerd.docker("pull", f"{reference}-x86")


class TestUpdate:
    def test_a_change_of_the_server_sends_little(
        self,
        dockerd20: DockerDaemon,
        edgebuild: Edgebuild,
        published: Published,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        built = published.built
        changed = _changed_edgebuild(edgebuild, tmp_path_factory.mktemp("copy"))
        model = built.model
        document = changed.json(
            "image", "--profile", "x86", "--model", model, "--lock", built.lock, "--locked", "--no-test",
        )  # fmt: skip
        old, new = built.image("x86")["layers"], document["images"][0]["layers"]
        differing = [was["role"] for was, now in zip(old, new, strict=True) if was["digest"] != now["digest"]]
        assert "server" in differing
        assert set(differing) <= {"server", "config"}

        name = published.registry.reference("acme/alert", "1.1")
        told = changed.json("push", changed.folder / "build", name)
        assert 0 < told["sent_bytes"] <= UPDATE_LIMIT_BYTES
        with removed_afterwards(dockerd20, published.tag("x86"), f"{name}-x86"):
            dockerd20.docker("pull", published.tag("x86"))
            before = len(published.registry.accesses())
            dockerd20.docker("pull", f"{name}-x86")
            fetched = [a for a in published.registry.accesses()[before:] if a.method == "GET"]
            assert any("/blobs/" in access.path for access in fetched)
            assert sum(access.body_bytes for access in fetched) <= UPDATE_LIMIT_BYTES
            with dockerd20.container(f"{name}-x86", publish=8080, args=AS_ON_A_DEVICE) as container:
                wait_ready(container)
                assert answer(container) == built.image("x86")["smoke"]["answer"]


def _changed_edgebuild(edgebuild: Edgebuild, copy: Path) -> Edgebuild:
    """Copy edgebuild, change a line of its server, and return the command of the copy."""
    for name in ("builder", "images", "profiles", "templates"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    package = copy / "images" / "server" / "edgeserve" / "__init__.py"
    package.write_text(package.read_text("utf-8") + "\nCHANGED = True\n", "utf-8")
    path = os.pathsep.join((os.fspath(copy / "builder"), os.fspath(copy / "images" / "verify")))
    return replace(
        edgebuild,
        variables={**edgebuild.variables, "PYTHONPATH": path},
        program=(sys.executable, "-c", "from edgebuild.cli import main; main()"),
    )


class TestOthers:
    def test_crane(self, crane: Tool, published: Published) -> None:
        for name in (published.reference, published.tag("x86"), published.tag("pi4")):
            crane.run("validate", "--remote", name, "--fast")
        assert crane.run("digest", published.reference).stdout.strip() == published.built.digest
        told = crane.run("manifest", published.tag("pi4")).stdout
        assert json.loads(told) == published.built.read(published.built.image("pi4")["digest"])
        config = json.loads(crane.run("config", "--platform", "linux/arm64", published.reference).stdout)
        assert config == published.built.read(published.built.image("pi4")["config_digest"])

    def test_oras(self, oras: Tool, published: Published) -> None:
        told = oras.run("manifest", "fetch", "--plain-http", published.reference).stdout
        assert json.loads(told) == published.built.read(published.built.digest)
        for digest in published.documents:
            found = oras.run(
                "discover", "--plain-http", "--format", "json", published.at(digest), "--distribution-spec",
                "v1.1-referrers-tag",
            )  # fmt: skip
            assert "application/vnd.dev.sigstore.bundle.v0.3+json" in found.stdout

    def test_cosigns_verify_what_the_command_signed(
        self, cosign2: Tool, cosign3: Tool, published: Published, tmp_path: Path
    ) -> None:
        repository = _repository(published.reference, tmp_path, published.built.public)
        names = [published.at(digest) for digest in published.documents]
        names += [published.reference, published.tag("x86"), published.tag("pi4")]
        for name in names:
            assert cosign_accepts(cosign2, repository, name, key="built.pub"), name
            assert cosign_accepts(cosign3, repository, name, key="built.pub"), name
        assert cosign_accepts(cosign3, repository, names[0], "--new-bundle-format=false", key="built.pub")
        assert cosign_2_accepts_bundle(cosign2, repository, names[0], key="built.pub")
        for cosign in (cosign2, cosign3):
            assert not cosign_accepts(cosign, repository, names[0], key="strangers.pub")

    @pytest.mark.parametrize("form", ["cosign2", "cosign3", "cosign3-legacy"])
    def test_the_command_verifies_what_cosigns_signed(
        self,
        request: pytest.FixtureRequest,
        edgebuild: Edgebuild,
        built_layout: Built,
        registry: Registry,
        form: str,
    ) -> None:
        unsigned = edgebuild.folder / "layout"
        edgebuild.run(
            "image", "--profile", "x86", "--model", built_layout.model,
            "--lock", built_layout.lock, "--locked", "--no-test", "--output", unsigned, "--quiet",
        )  # fmt: skip
        reference = registry.reference("acme/alert", "1.0")
        edgebuild.run("push", unsigned, reference)
        folder = edgebuild.folder / "cosign"
        folder.mkdir()
        repository = _repository(reference, folder, built_layout.public)
        theirs = ("verify", reference, "--key", folder / "ours.pub")
        assert edgebuild.run(*theirs, check=False).returncode == 8
        how: dict[str, tuple[str | Path, ...]] = {
            "cosign2": ("--tlog-upload=false",),
            "cosign3": cosign_3_bundle(repository),
            "cosign3-legacy": COSIGN_3_LEGACY,
        }
        cosign: Tool = request.getfixturevalue(form.partition("-")[0])
        cosign_sign(cosign, repository, reference, *how[form])
        verified = edgebuild.json(*theirs)["verified"][0]
        assert len(verified["signed"]) == 2
        assert (
            edgebuild.run("verify", reference, "--key", folder / "strangers.pub", check=False).returncode == 8
        )

    def test_the_command_verifies_in_the_registry(self, edgebuild: Edgebuild, published: Published) -> None:
        key = ("--key", published.built.public)
        for name in (published.reference, published.at(published.built.digest)):
            verified = edgebuild.json("verify", name, *key)["verified"][0]
            assert set(verified["signed"]) == set(published.documents)
        named = ("--name", published.tag("pi4"))
        edgebuild.run("verify", published.tag("pi4"), *key, *named)


def _repository(reference: str, folder: Path, public: Path) -> Repository:
    write_cosign_files(folder)
    shutil.copy(public, folder / "built.pub")
    return Repository(Reference.parse(reference), folder)


def test_digests_are_those_of_the_registry(crane: Tool, published: Published) -> None:
    for image in published.built.document["images"]:
        found = crane.run("digest", published.tag(image["profile"])).stdout.strip()
        assert Digest.parse(found) == Digest.parse(image["digest"])

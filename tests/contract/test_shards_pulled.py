"""A model in shards, in the hands of those who pull: what breaks is fetched again, what came whole is not.

What a client keeps of a pull that fails for good is its own affair: Docker 20.10 drops all of it.
"""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_images_docker import AS_ON_A_DEVICE
from tests.support.built import make_edgebuild
from tests.support.containers import answer, wait_ready
from tests.support.faulty_registry import CutResponse, FaultyRegistry, Hang
from tests.support.fixtures import Peers
from tests.support.peers.docker import DockerDaemon, running_dockerd
from tests.support.peers.tool import ENDS_WITH_US, Tool

pytestmark = pytest.mark.peers

CUT_BYTES = 1_000_000
BROKEN = 1  # which shard breaks


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """An image whose model is in four shards, in a registry."""

    registry: FaultyRegistry
    reference: str
    shards: tuple[tuple[str, int], ...]

    def fetched(self, since: int) -> list[list[tuple[str, int]]]:
        """List by shard the ranges that were asked for and the bytes that were sent."""
        asked = [request for request in self.registry.requests[since:] if request.method == "GET"]
        return [
            [
                (request.headers.get("range", ""), request.sent_bytes)
                for request in asked
                if request.path.endswith(digest)
            ]
            for digest, _ in self.shards
        ]

    def whole(self, number: int) -> list[tuple[str, int]]:
        """What `fetched` says of a shard that came at once."""
        return [("", self.shards[number][1])]


@pytest.fixture(scope="module")
def layout(
    built_store: Path, built_lock: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    command = make_edgebuild(tmp_path_factory.mktemp("shards"), built_store)
    document = command.json(
        "image", "--profile", "x86", "--no-test", "--lock", built_lock, "--quantization", "F16",
        "--shard-size", "2MiB",
    )  # fmt: skip
    return command.folder / "build", document["images"][0]


@pytest.fixture
def pushed(
    faulty_registry: FaultyRegistry, layout: tuple[Path, dict[str, Any]], built_store: Path, tmp_path: Path
) -> Pushed:
    path, image = layout
    reference = faulty_registry.reference("acme/alert", "1")
    make_edgebuild(tmp_path, built_store).run("push", path, reference)
    shards = tuple(
        (layer["digest"], layer["size_bytes"]) for layer in image["layers"] if layer["role"] == "model"
    )
    assert len(shards) == 4
    return Pushed(registry=faulty_registry, reference=reference, shards=shards)


@pytest.mark.slow
def test_docker_goes_on_where_a_shard_broke(dockerd: DockerDaemon, pushed: Pushed) -> None:
    cut = CutResponse(after_bytes=CUT_BYTES)
    broken = pushed.registry.inject(cut, method="GET", path=pushed.shards[BROKEN][0])
    before = len(pushed.registry.requests)
    try:
        dockerd.docker("pull", pushed.reference)
        assert broken.hits == 1
        for number, found in enumerate(pushed.fetched(before)):
            rest = pushed.shards[number][1] - CUT_BYTES
            is_broken = number == BROKEN
            assert found == (
                [("", CUT_BYTES), (f"bytes={CUT_BYTES}-", rest)] if is_broken else pushed.whole(number)
            )
        # Four files in four layers are one model to llama.cpp.
        with dockerd.container(pushed.reference, publish=8080, args=AS_ON_A_DEVICE) as container:
            wait_ready(container)
            assert answer(container)
            assert container.logs().count("model-check") == len(pushed.shards)
    finally:
        dockerd.docker("image", "rm", "--force", pushed.reference, check=False)


@pytest.fixture
def fresh_dockerd(peers: Peers) -> Iterator[DockerDaemon]:
    """One that has no other test's blobs."""
    with ExitStack() as stack:
        yield peers.enter(stack, running_dockerd("dockerd28", containerd_store=True))


def test_containerd_keeps_the_shards_of_a_pull_that_was_stopped(
    fresh_dockerd: DockerDaemon, pushed: Pushed
) -> None:
    kept = fresh_dockerd.folder / "data/containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
    others = [digest for number, (digest, _) in enumerate(pushed.shards) if number != BROKEN]
    silent = pushed.registry.inject(Hang(), method="GET", path=pushed.shards[BROKEN][0], times=20)
    with subprocess.Popen(
        [*ENDS_WITH_US, fresh_dockerd.programs / "docker", "pull", "--quiet", pushed.reference],
        env=fresh_dockerd.environment(),
    ) as pull:
        _wait(lambda: all((kept / digest.removeprefix("sha256:")).exists() for digest in others))
        pull.send_signal(signal.SIGINT)
    assert pull.returncode != 0
    # Before it has said so the lease is not settled.
    _wait(lambda: "leased resources will remain" in fresh_dockerd.log.read_text("utf-8"))
    silent.end()
    before = len(pushed.registry.requests)
    fresh_dockerd.docker("pull", pushed.reference)
    assert pushed.fetched(before) == [pushed.whole(number) if number == BROKEN else [] for number in range(4)]


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_skopeo_goes_on_with_the_shard_that_broke(skopeo: Tool, pushed: Pushed, tmp_path: Path) -> None:
    def copy(*, check: bool) -> int:
        return skopeo.run(
            "copy", "--insecure-policy", "--src-tls-verify=false", "--preserve-digests",
            f"docker://{pushed.reference}", f"oci:{tmp_path / 'copy'}:1", check=check,
        ).returncode  # fmt: skip

    path = pushed.shards[BROKEN][0]
    # The others come meanwhile.
    pushed.registry.inject(Hang(seconds=2), method="GET", path=path)
    cut = pushed.registry.inject(CutResponse(after_bytes=1000), method="GET", path=path, times=20)
    before = len(pushed.registry.requests)
    assert copy(check=False) != 0
    complete = [
        number for number, found in enumerate(pushed.fetched(before)) if found == pushed.whole(number)
    ]
    assert complete == [number for number in range(4) if number != BROKEN]
    cut.end()
    before = len(pushed.registry.requests)
    copy(check=True)
    assert pushed.fetched(before) == [pushed.whole(number) if number == BROKEN else [] for number in range(4)]


def test_an_archive_brings_every_shard(
    dockerd: DockerDaemon, layout: tuple[Path, dict[str, Any]], built_store: Path, tmp_path: Path
) -> None:
    path, image = layout
    make_edgebuild(tmp_path, built_store).run("archive", path, "--output", "shards.tar")
    told = dockerd.docker("load", "--input", tmp_path / "shards.tar").stdout
    name = told.split("Loaded image: ")[1].strip()
    try:
        seen = json.loads(dockerd.docker("image", "inspect", name).stdout)[0]
        assert seen["RootFS"]["Layers"] == [layer["diff_id"] for layer in image["layers"]]
    finally:
        dockerd.docker("image", "rm", "--force", name, check=False)

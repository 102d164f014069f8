"""A composed set-up of a registry and a device's image: pushed by `edgebuild`, pulled by compose, it answers a prompt."""

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
from pytest_docker.plugin import Services

from tests.support.built import Built, make_edgebuild
from tests.support.containers import answer_at, wait_ready_at
from tests.support.fixtures import Peers
from tests.support.peers.docker import DockerDaemon
from tests.support.peers.fetch import peer_prefix

pytestmark = pytest.mark.peers

FOLDER = Path(__file__).parent / "compose"


@pytest.fixture(scope="session")
def registry_port() -> int:
    """A port that was free a moment ago: the image's name holds it, so it must be known before the registry runs."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def registry_context(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the registry's image is built from: the tests' own program and the libraries that it loads."""
    context = shutil.copytree(FOLDER / "registry", tmp_path_factory.mktemp("context") / "registry")
    program = peers.get(lambda: peer_prefix("registry")) / "usr" / "bin" / "docker-registry"
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    libraries = [Path(found) for found in re.findall(r"(?:=> |^\t)(/\S+) \(0x", linked, re.MULTILINE)]
    for source, target in [
        (program, Path("/usr/bin/docker-registry")),
        *((path, path) for path in libraries),
    ]:
        place = context / "root" / target.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    return context


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(FOLDER / "compose.yaml")


@pytest.fixture(scope="session")
def docker_compose_command(dockerd28: DockerDaemon, registry_port: int, registry_context: Path) -> str:
    settings = f"REGISTRY_PORT='{registry_port}' REGISTRY_CONTEXT='{registry_context}'"
    return f"env {settings} {dockerd28.compose_command}"


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["up --detach --build --wait registry"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["down --volumes --rmi all --timeout 2"]


def test_an_image_from_the_composed_registry_answers(
    docker_services: Services,
    registry_port: int,
    built_layout: Built,
    built_store: Path,
    tmp_path: Path,
) -> None:
    _wait_for_registry(registry_port)
    command = make_edgebuild(tmp_path, built_store)
    reference = f"127.0.0.1:{registry_port}/acme/alert:1.0"
    command.run("push", built_layout.layout, reference, *built_layout.signing)
    command.run("verify", reference, "--key", built_layout.public, "--name", reference)

    compose = docker_services._docker_compose
    compose.execute("up --detach --wait --wait-timeout 120 alert")  # waits until its health check says so
    url = f"http://127.0.0.1:{docker_services.port_for('alert', 8080)}"
    ready = wait_ready_at(url, lambda: compose.execute("logs alert").decode())
    assert ready["status"] == "ready"
    assert answer_at(url) == built_layout.image("x86")["smoke"]["answer"]


def _wait_for_registry(port: int) -> None:
    deadline = time.monotonic() + 30
    with httpx2.Client(trust_env=False) as client:
        while True:
            try:
                if client.get(f"http://127.0.0.1:{port}/v2/").status_code == 200:
                    return
            except httpx2.TransportError:
                assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.1)

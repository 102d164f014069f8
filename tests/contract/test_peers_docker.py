"""Both daemons work for real: they pull, run amd64 and arm64, publish ports, compose, and leave nothing behind."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers.bridge import BRIDGE_PREFIX
from tests.support.peers.docker import DockerDaemon
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.support.tiny_image import TinyImage, write_tiny_image

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, busybox_amd64: Path, busybox_arm64: Path) -> TinyImage:
    folder = tmp_path_factory.mktemp("tiny") / "layout"
    return write_tiny_image(
        folder, programs={"amd64": busybox_amd64, "arm64": busybox_arm64}, text="it answers"
    )


@pytest.fixture
def reference(registry: Registry, crane: Tool, image: TinyImage, dockerd: DockerDaemon) -> Iterator[str]:
    reference = registry.reference("tiny/image", "v1")
    crane.run("push", image.layout, reference)
    yield reference
    dockerd.docker("image", "rm", "--force", reference, check=False)


def get(url: str) -> str:
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text: str = answer.read().decode()
                return text
        except (urllib.error.URLError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_versions(dockerd20: DockerDaemon, dockerd28: DockerDaemon) -> None:
    assert dockerd20.version.startswith("20.10.24")
    assert dockerd28.version.startswith("28.5.")
    drivers = [
        daemon.docker("info", "--format", "{{.Driver}}").stdout.strip() for daemon in (dockerd20, dockerd28)
    ]
    assert drivers == ["overlay2", "overlayfs"]
    assert dockerd28.docker("buildx", "version").stdout.startswith("github.com/docker/buildx")


def test_an_image_is_pulled_and_runs(dockerd: DockerDaemon, reference: str) -> None:
    assert dockerd.docker("run", "--rm", reference).stdout == "it answers"
    machine = dockerd.docker("run", "--rm", "--init", reference, "/bin/busybox", "uname", "-m")
    assert machine.stdout.strip() == "x86_64"


def test_a_digest_is_pulled(dockerd: DockerDaemon, reference: str, image: TinyImage) -> None:
    pinned = f"{reference.rpartition(':')[0]}@{image.manifests['amd64']}"
    dockerd.docker("pull", pinned)
    assert dockerd.docker("run", "--rm", pinned).stdout == "it answers"
    dockerd.docker("image", "rm", pinned)


def test_a_login_is_used(
    dockerd: DockerDaemon, auth_registry: Registry, crane: Tool, image: TinyImage, tmp_path: Path
) -> None:
    reference = auth_registry.reference("tiny")
    config = auth_registry.write_docker_config(tmp_path)
    crane.run("push", image.layout, reference, env={"DOCKER_CONFIG": str(config.parent)})
    assert dockerd.docker("pull", reference, check=False).returncode != 0
    dockerd.write_login(auth_registry)
    dockerd.docker("pull", reference)
    dockerd.docker("image", "rm", reference)


def test_arm64_runs_with_the_cpu_that_its_environment_names(
    dockerd: DockerDaemon, reference: str, arm64_binfmt: str
) -> None:
    dockerd.docker("pull", "--platform", "linux/arm64", reference)
    script = "/bin/busybox uname -m; /bin/busybox cat /text"
    options = ("run", "--rm", "--platform", "linux/arm64")
    done = dockerd.docker(*options, "--env", "QEMU_CPU=cortex-a72", reference, "/bin/sh", "-c", script)
    assert done.stdout == "aarch64\nit answers"
    # qemu refuses a CPU that it does not know: so the variable does reach it.
    wrong = dockerd.docker(*options, "--env", "QEMU_CPU=no-such-cpu", reference, check=False)
    assert wrong.returncode != 0
    assert "no-such-cpu" in wrong.stderr


def test_a_published_port_answers_on_the_loopback(dockerd: DockerDaemon, reference: str) -> None:
    server = ("/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/")
    with dockerd.container(reference, *server, publish=80) as container:
        assert get(f"{container.url}/text") == "it answers"
        assert container.execute("/bin/busybox", "cat", "/text").stdout == "it answers"


def test_a_container_shares_the_network_of_the_host(dockerd: DockerDaemon, reference: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    server = ("/bin/busybox", "httpd", "-f", "-p", address, "-h", "/")
    with dockerd.container(reference, *server, args=("--network=host",)):
        assert get(f"http://{address}/text") == "it answers"


def test_buildx_builds_for_both_platforms(
    dockerd28: DockerDaemon, image: TinyImage, arm64_binfmt: str, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        'FROM base\nRUN ["/bin/busybox", "sh", "-c", "uname -m > /machine"]\n', "utf-8"
    )
    dockerd28.docker(
        "buildx", "build", "--platform=linux/amd64,linux/arm64", f"--output=type=oci,dest={tmp_path / 'built.tar'}",
        f"--build-context=base=oci-layout://{image.layout}@{image.digest}", tmp_path,
    )  # fmt: skip
    with tarfile.open(tmp_path / "built.tar") as built:
        top = json.load(built.extractfile("index.json") or pytest.fail("no index.json"))["manifests"][0]
        blob = built.extractfile(f"blobs/sha256/{top['digest'][7:]}")
        platforms = [
            entry["platform"]["architecture"]
            for entry in json.load(blob or pytest.fail("no index"))["manifests"]
        ]
    assert platforms[:2] == ["amd64", "arm64"]


def test_compose_runs_a_service(dockerd: DockerDaemon, reference: str, tmp_path: Path) -> None:
    document = {
        "services": {
            "web": {
                "image": reference,
                "command": ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/"],
                "ports": ["127.0.0.1::80"],
                "stop_signal": "SIGKILL",
            }
        }
    }
    (tmp_path / "compose.yaml").write_text(json.dumps(document), "utf-8")
    compose = f"{dockerd.compose_command} --file '{tmp_path / 'compose.yaml'}' --project-name tiny"
    try:
        subprocess.run(f"{compose} up --detach", shell=True, check=True, capture_output=True)
        port = subprocess.run(
            f"{compose} port web 80", shell=True, check=True, capture_output=True, text=True
        ).stdout
        assert get(f"http://{port.strip()}/text") == "it answers"
    finally:
        subprocess.run(f"{compose} down --volumes", shell=True, check=True, capture_output=True)


_RUN = """
import os, sys
from tests.support.peers.docker import running_dockerd
archive, seconds, end = sys.argv[1:]
with running_dockerd("dockerd20", containerd_store=False) as daemon:
    daemon.docker("import", archive, "tiny")
    daemon.docker("run", "--detach", "tiny", "/bin/busybox", "sleep", seconds)
    print(os.getpid(), daemon.folder, flush=True)
    if end == "killed":
        os.kill(os.getpid(), 9)
"""


def leftovers(folder: str, seconds: str) -> list[str]:
    """Find the processes and mounts of a daemon."""
    name = Path(folder).name
    commands = [path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline")]
    mounts = Path("/proc/mounts").read_text("utf-8").splitlines()
    return [text for text in (*commands, *mounts) if name in text or f"sleep\0{seconds}" in text]


def test_nothing_outlives_a_test_run(dockerd20: DockerDaemon, busybox_amd64: Path, tmp_path: Path) -> None:
    (tmp_path / "root/bin").mkdir(parents=True)
    shutil.copy(busybox_amd64, tmp_path / "root/bin/busybox")
    archive = tmp_path / "root.tar"
    subprocess.run(["tar", "-C", tmp_path / "root", "-c", "-f", archive, "."], check=True)
    seconds = str(1_000_000 + os.getpid())
    ended = []
    for end, returncode in (("killed", -9), ("stopped", 0)):
        argv = [sys.executable, "-c", _RUN, os.fspath(archive), seconds, end]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert done.returncode == returncode, done.stderr
        pid, folder = done.stdout.split()
        ended.append((pid, folder))
        deadline = time.monotonic() + 10
        while leftovers(folder, seconds) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert leftovers(folder, seconds) == []
    # What a killed run leaves (a folder, empty control groups, a bridge) the next run takes away.
    owners = [
        alias.read_text("ascii").strip() for alias in Path("/sys/class/net").glob(f"{BRIDGE_PREFIX}*/ifalias")
    ]
    for pid, folder in ended:
        assert not Path(folder).exists()
        assert not list(Path("/sys/fs/cgroup").glob(f"**/edgebuild-{Path(folder).name}"))
        assert pid not in owners

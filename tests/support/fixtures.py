"""Fixtures of real peers. `--require-tools` turns a peer that cannot be had from a skip into a failure."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from tests.support.faulty_registry import FaultyRegistry
from tests.support.peers.binfmt import arm64_programs
from tests.support.peers.docker import DockerDaemon, running_dockerd
from tests.support.peers.errors import PeerUnavailableError
from tests.support.peers.fetch import peer_prefix
from tests.support.peers.registry import Registry, running_registry
from tests.support.peers.tool import Tool, loader_argv

_T = TypeVar("_T")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-tools",
        action="store_true",
        help="a peer or tool that cannot be had fails its tests instead of skipping them",
    )


class Peers:
    """Obtains peers: what cannot be had skips the test, or fails it with `--require-tools`."""

    def __init__(self, *, required: bool) -> None:
        self._required = required

    def enter(self, stack: contextlib.ExitStack, peer: contextlib.AbstractContextManager[_T]) -> _T:
        """Start a peer that is stopped with the stack."""
        return self.get(lambda: stack.enter_context(peer))

    def get(self, obtain: Callable[[], _T]) -> _T:
        """Return what `obtain` returns."""
        try:
            return obtain()
        except PeerUnavailableError as error:
            reason = str(error)
        return self.missing(reason)

    def missing(self, reason: str) -> NoReturn:
        """Skip or fail the test for want of a tool."""
        if self._required:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def peers(pytestconfig: pytest.Config) -> Peers:
    """The way to a peer or tool that is not a fixture by itself."""
    return Peers(required=bool(pytestconfig.getoption("--require-tools")))


@pytest.fixture
def make_registry(
    peers: Peers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Registry]]:
    """`make_registry(login=False)`: any number of registries, stopped when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(*, login: bool = False) -> Registry:
            return peers.enter(stack, running_registry(tmp_path_factory.mktemp("registry"), login=login))

        yield make


@pytest.fixture
def registry(make_registry: Callable[..., Registry]) -> Registry:
    """An empty registry that asks for no login."""
    return make_registry()


@pytest.fixture
def auth_registry(make_registry: Callable[..., Registry]) -> Registry:
    """An empty registry that asks for a login: its `username` and `password`."""
    return make_registry(login=True)


def _tool(peers: Peers, factory: pytest.TempPathFactory, name: str, program: str) -> Tool:
    path = peers.get(lambda: peer_prefix(name)) / program
    return Tool(path=path, home=factory.mktemp(name), prefix=(str(path),))


@pytest.fixture(scope="session")
def cosign2(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """cosign 2.5."""
    return _tool(peers, tmp_path_factory, "cosign2", "usr/bin/cosign")


@pytest.fixture(scope="session")
def cosign3(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """cosign 3.1."""
    return _tool(peers, tmp_path_factory, "cosign3", "usr/bin/cosign")


@pytest.fixture(scope="session")
def crane(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """crane 0.20."""
    return _tool(peers, tmp_path_factory, "crane", "usr/bin/crane")


@pytest.fixture(scope="session")
def oras(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """oras 1.3."""
    return _tool(peers, tmp_path_factory, "oras", "usr/bin/oras")


@pytest.fixture(scope="session")
def skopeo(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """skopeo 1.18, started by the loader of its own suite."""
    prefix = peers.get(lambda: peer_prefix("skopeo"))
    program = "usr/bin/skopeo"
    return Tool(
        path=prefix / program, home=tmp_path_factory.mktemp("skopeo"), prefix=loader_argv(prefix, program)
    )


@pytest.fixture(scope="session")
def curl_folder(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH that holds curl, started by the loader of its own suite."""
    prefix = peers.get(lambda: peer_prefix("curl"))
    folder = tmp_path_factory.mktemp("curl")
    # Packages of Debian 12 have the loader and libc below /lib still.
    old, usual = prefix / "lib/x86_64-linux-gnu", prefix / "usr/lib/x86_64-linux-gnu"
    argv = [
        str(old / "ld-linux-x86-64.so.2"),
        "--library-path",
        f"{old}:{usual}",
        str(prefix / "usr/bin/curl"),
    ]
    program = folder / "curl"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def qemu_arm64(peers: Peers) -> Path:
    """A static qemu for arm64 programs; set QEMU_CPU for it, as `max` is slow and no device's CPU."""
    return peers.get(lambda: peer_prefix("qemu-arm64")) / "usr/bin/qemu-aarch64-static"


@pytest.fixture(scope="session")
def busybox_amd64(peers: Peers) -> Path:
    """A static busybox."""
    return peers.get(lambda: peer_prefix("busybox-amd64")) / "bin/busybox"


@pytest.fixture(scope="session")
def busybox_arm64(peers: Peers) -> Path:
    """A static busybox for arm64."""
    return peers.get(lambda: peer_prefix("busybox-arm64")) / "bin/busybox"


@pytest.fixture(scope="session")
def arm64_binfmt(peers: Peers, qemu_arm64: Path) -> Iterator[str]:
    """arm64 programs run, in containers of our daemons too; give QEMU_CPU in the container's environment."""
    with contextlib.ExitStack() as stack:
        yield peers.enter(stack, arm64_programs(qemu_arm64))


@pytest.fixture(scope="session")
def dockerd20(peers: Peers) -> Iterator[DockerDaemon]:
    """Docker 20.10 with the classic store, as balenaEngine and Greengrass devices have it."""
    with contextlib.ExitStack() as stack:
        yield peers.enter(stack, running_dockerd("dockerd20", containerd_store=False))


@pytest.fixture(scope="session")
def dockerd28(peers: Peers) -> Iterator[DockerDaemon]:
    """Docker 28 with containerd's store."""
    with contextlib.ExitStack() as stack:
        yield peers.enter(stack, running_dockerd("dockerd28", containerd_store=True))


@pytest.fixture(params=["dockerd20", "dockerd28"])
def dockerd(request: pytest.FixtureRequest) -> DockerDaemon:
    """Each daemon in turn."""
    daemon: DockerDaemon = request.getfixturevalue(request.param)
    return daemon


@pytest.fixture
def faulty_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyRegistry]:
    """A loopback registry that fails when told to, without login, referrers API or faults yet."""
    with FaultyRegistry(tmp_path_factory.mktemp("faulty-registry")) as registry:
        yield registry

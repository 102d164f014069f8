"""How many bytes a Docker 20.10 that has the image fetches when only the server changed, from the registry's own log."""

from collections.abc import Iterator

from benchmarks.bench import Bench, change_server
from benchmarks.figures import Figure, Peer
from benchmarks.plain import plain_way
from tests.support.peers.docker import DockerDaemon, running_dockerd
from tests.support.peers.registry import Registry, running_registry

LIMIT_BYTES = 1_000_000
_PROFILE = "x86"


def run(bench: Bench) -> Iterator[Figure]:
    """Pull a version, change the server, pull again."""
    checkout = bench.copy_checkout()
    copy = bench.of_checkout(checkout)
    with (
        running_registry(bench.folder / "registry") as registry,
        running_dockerd("dockerd20", containerd_store=False) as device,
    ):
        name = registry.reference("ours", "1")
        arguments = ("--profile", _PROFILE, "--model", bench.model, "--no-test", "--output", "layout")
        copy.image(*arguments, "--push", "--tag", name)
        first = _pull(device, registry, name)
        with plain_way(
            bench.folder / "context", layout=bench.folder / "layout", profile=_PROFILE, registry=registry
        ) as plain:
            plain_name = registry.reference("plain", "1")
            plain.build(plain_name)
            plain.push(plain_name)
            plain_first = _pull(device, registry, plain_name)
            plain.change_server("once")
            plain.build(plain_name)
            plain.push(plain_name)
            plain_update = _pull(device, registry, plain_name)
        change_server(checkout, "once")
        copy.image(*arguments, "--push", "--tag", name)
        update = _pull(device, registry, name)
    peer = "buildx image, same order of layers"
    yield Figure(
        name="first pull by Docker 20.10",
        unit="B",
        ours=first,
        peers=(Peer(name=peer, value=plain_first),),
    )
    yield Figure(
        name="pull after a change to the server",
        unit="B",
        ours=update,
        limit=LIMIT_BYTES,
        peers=(Peer(name=peer, value=plain_update),),
    )


def _pull(device: DockerDaemon, registry: Registry, name: str) -> int:
    """Pull and return the bytes of all bodies that the registry sent for it."""
    before = len(registry.accesses())
    device.docker("pull", name)
    return sum(access.body_bytes for access in registry.accesses()[before:] if access.method == "GET")

"""Pushing to the distribution registry itself, read back by crane and oras."""

import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from edgebuild.errors import RegistryError
from edgebuild.oci.blob import Blob
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import signature_tag
from edgebuild.registry.layouts import push_layout
from edgebuild.registry.patience import Limits
from edgebuild.registry.push import Way, open_sink
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.unit.registry.conftest import Recorder
from tests.unit.registry.signed_layout import write_signed_layout

pytestmark = pytest.mark.peers
FAST = Limits(idle_s=5, attempts=3, deadline_s=10, backoff_s=0.05)


def test_layout_as_peers_see_it(registry: Registry, crane: Tool, oras: Tool, tmp_path: Path) -> None:
    layout = write_signed_layout(tmp_path / "layout", signed_for=registry.reference("acme/llm", "2.0"))
    reference = Reference.parse(registry.reference("acme/llm", "2.0"))
    progress = Recorder()
    for expected in (Way.SENT, Way.PRESENT):
        with open_sink(reference, environment={}, progress=progress, chunk_bytes=64 << 10) as sink:
            done = push_layout(layout, reference, sink=sink, progress=progress)
        assert done.report.bytes_by(expected) > 200_000
        assert done.signed_for == ()
    main = layout.main()
    name = f"{registry.host}/acme/llm"
    assert crane.run("digest", f"{name}:2.0").stdout.strip() == str(main.digest)
    assert sorted(crane.run("ls", name).stdout.split()) == sorted(
        ["2.0", "2.0-pi4", "2.0-x86"]
        + [
            tag
            for subject in (main, *layout.children(main))
            for tag in (signature_tag(subject.digest), f"sha256-{subject.digest.hex}")
        ]
    )
    crane.run("validate", "--remote", f"{name}:2.0-pi4", "--fast")
    assert oras.run(
        "manifest", "fetch", "--plain-http", f"{name}@{main.digest}"
    ).stdout.encode() == layout.document(main)
    found = json.loads(
        oras.run("discover", "--plain-http", "--format", "json", f"{name}@{main.digest}").stdout
    )
    assert [r["artifactType"] for r in found["referrers"]] == [
        "application/vnd.dev.sigstore.bundle.v0.3+json"
    ]
    model = max(layout.children(layout.children(main)[0]), key=lambda child: child.size_bytes)
    oras.run("blob", "fetch", "--plain-http", f"{name}@{model.digest}", "--output", str(tmp_path / "model"))
    assert Digest.of((tmp_path / "model").read_bytes()) == model.digest


def test_login(auth_registry: Registry, crane: Tool, tmp_path: Path) -> None:
    layout = write_signed_layout(tmp_path / "layout")
    reference = Reference.parse(auth_registry.reference("acme/llm", "2.0"))
    progress = Recorder()
    config = auth_registry.write_docker_config(tmp_path / "docker")

    def push() -> None:
        environment = {"DOCKER_CONFIG": str(config.parent)}
        with open_sink(reference, environment=environment, progress=progress) as sink:
            push_layout(layout, reference, sink=sink, progress=progress)

    right = config.read_text()
    config.write_text("{}")
    with pytest.raises(RegistryError, match="401") as error:
        push()
    assert error.value.hint == f"log in first: docker login {auth_registry.host}"
    config.write_text(json.dumps({"auths": {auth_registry.host: {"username": "edge", "password": "no"}}}))
    with pytest.raises(RegistryError, match="401") as error:
        push()
    assert error.value.hint == f"the login was refused; log in again: docker login {auth_registry.host}"
    config.write_text(right)
    push()
    listed = crane.run("ls", str(reference).rpartition(":")[0], env={"DOCKER_CONFIG": str(config.parent)})
    assert "2.0-pi4" in listed.stdout.split()


class CuttingProxy:
    """Stands before a registry and ends its n-th connection after so many bytes of what the client sends."""

    def __init__(self, port: int, *, cut_after_bytes: tuple[int, ...]) -> None:
        self._upstream_port = port
        self._budgets = list(cut_after_bytes)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._server]
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        end(*self._sockets)
        self._threads[0].join()
        end(*self._sockets)
        for thread in self._threads[1:]:
            thread.join()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                upstream = socket.create_connection(("127.0.0.1", self._upstream_port))
                self._sockets += (client, upstream)
                budget = self._budgets.pop(0) if self._budgets else None
                for ends in ((client, upstream, budget), (upstream, client, None)):
                    self._threads.append(threading.Thread(target=self._forward, args=ends))
                    self._threads[-1].start()

    def _forward(self, source: socket.socket, sink: socket.socket, budget: int | None) -> None:
        with suppress(OSError):  # the other direction has ended
            while data := source.recv(65536):
                if budget is not None and (budget := budget - len(data)) < 0:
                    break
                sink.sendall(data)
        end(source, sink)


def end(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("known", [True, False], ids=["digest known", "digest unknown"])
def test_connection_that_breaks_in_the_middle(registry: Registry, tmp_path: Path, known: bool) -> None:
    """distribution 2.8 lets the session die with the PATCH; the second break hits the new session."""
    data = bytes(range(256)) * 4096 * 8
    path = tmp_path / "model"
    path.write_bytes(data)
    progress = Recorder()
    with CuttingProxy(registry.port, cut_after_bytes=(5_500_000, 2_500_000)) as proxy:
        reference = Reference.parse(f"127.0.0.1:{proxy.port}/acme/llm:1")
        with open_sink(
            reference, environment={}, progress=progress, limits=FAST, chunk_bytes=1 << 20
        ) as sink:
            digest = sink.put_blob(
                Blob.of_file(path), digest=Digest.of(data) if known else None, title="model"
            )
    assert digest == Digest.of(data)
    stored = registry.storage / "docker/registry/v2/blobs/sha256" / digest.hex[:2] / digest.hex / "data"
    assert Digest.of(stored.read_bytes()) == digest
    assert progress.advanced["push model"] == len(data)
    assert len([note for note in progress.notes if "trying again" in note]) >= 2
    patches = [a for a in registry.accesses() if a.method == "PATCH" and a.status == 202]
    assert len(patches) >= 8


PUSH = """
import re, sys
from pathlib import Path
from edgebuild.oci.blob import Blob
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.progress import SilentProgress
from edgebuild.registry.push import open_sink
path, name, digest = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with open_sink(Reference.parse(name), environment={}, progress=SilentProgress()) as sink:
    known = Digest.parse(digest) if digest else None
    blob = Blob((b"head" * 128, path, b"tail" * 128), path.stat().st_size + 1024)
    print(sink.put_blob(blob, digest=known, title="model"))
    size = sum(len(chunk) for chunk in sink.client.get_blob(known)) if known else 0
# Not ru_maxrss: that begins with the peak of the process that started this one.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_model(registry: Registry, tmp_path: Path) -> None:
    """Sending with the digest unknown, sending with it known and reading back stay below 100 MB for 400 MB."""
    path = tmp_path / "model"
    with path.open("wb") as file:
        file.truncate(400_000_000)
    hasher = hashlib.sha256(b"head" * 128)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    hasher.update(b"tail" * 128)
    digest = f"sha256:{hasher.hexdigest()}"
    for repository, known in (("acme/one", ""), ("acme/two", digest)):
        done = subprocess.run(
            [sys.executable, "-c", PUSH, str(path), registry.reference(repository, "1"), known],
            capture_output=True,
            text=True,
            check=True,
        )
        found, peak_kib = done.stdout.split()
        assert found == digest
        assert 10_000_000 < int(peak_kib) * 1024 < 100_000_000


def test_client_against_the_registry(make_registry: Callable[..., Registry]) -> None:
    registry = make_registry()
    reference = Reference.parse(registry.reference("acme/llm", "1"))
    with open_sink(reference, environment={}, progress=Recorder(), limits=FAST) as sink:
        with pytest.raises(RegistryError, match="404 NAME_UNKNOWN"):
            sink.client.tags()
        sink.check_access()
        digest = sink.put_blob(Blob.of_bytes(b""), digest=None, title="empty")
        assert b"".join(sink.client.get_blob(digest)) == b""
        assert sink.get_manifest("1") is None
        assert sink.client.list_referrers(digest) == ()
        with pytest.raises(RegistryError, match="400 DIGEST_INVALID") as error:
            sink.put_blob(Blob.of_bytes(b"x"), digest=Digest.of(b"y"), title="false")
        assert "push again" in error.value.hint
    opened = [a for a in registry.accesses() if a.method == "DELETE"]
    assert [a.status for a in opened] == [204]  # what check_access opened is gone

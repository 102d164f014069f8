"""Large layers and several of them: by several connections, side by side, through cuts, lies, logins and redirects."""

import base64
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.errors import RegistryError
from edgebuild.gguf_shards import cut_gguf, shard_names
from edgebuild.host import make_host
from edgebuild.model.source import find_model
from edgebuild.oci.digest import Digest
from edgebuild.pieces import CONNECTIONS, PIECE_BYTES, PIECES_FROM_BYTES
from edgebuild.progress import SilentProgress
from tests.integration.test_model_registry import Load, load, push, ranges, store
from tests.support.built import make_edgebuild
from tests.support.faulty_registry import Answer, Corrupt, CutResponse, FaultyRegistry, Hang, TokenLogin
from tests.support.file_server import FileServer, Page, file_server
from tests.support.peers.registry import Registry
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.waiting import wait_until

__all__ = ["load", "store"]  # fixtures

GGUF = "application/vnd.docker.ai.gguf.v3"
NAMED = "org.cncf.model.filepath"
CONFIG = ("application/vnd.docker.ai.model.config.v0.1+json", b'{"config": {"format": "gguf"}}')
MIB = 1 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model just large enough: what lies behind its tensors is nobody's."""
    gguf = write_tiny_gguf(tmp_path_factory.mktemp("large") / "a.gguf").read_bytes()
    tail = b"".join(
        index.to_bytes(4, "little") * 2048 for index in range((PIECES_FROM_BYTES + 2 * MIB) // 8192)
    )
    return gguf + tail


def put(host: str, *files: bytes) -> str:
    layers = tuple((GGUF, data, {NAMED: f"m-{n}.gguf"}) for n, data in enumerate(files))
    push(host, "ai/large", layers, config=CONFIG)
    return f"oci://{host}/ai/large:1"


def begins(registry: FaultyRegistry, data: bytes) -> list[int]:
    asked = ranges(registry, str(Digest.of(data)))
    return [int(text.removeprefix("bytes=").partition("-")[0] or 0) for text in asked]


def test_a_large_layer_comes_in_parts(registry: Registry, load: Load, store: Store, large: bytes) -> None:
    found = load(put(registry.host, large))
    assert found.path.read_bytes() == large
    assert store.verify() == ()
    asked = [one for one in registry.accesses() if one.method == "GET" and str(Digest.of(large)) in one.path]
    assert {one.status for one in asked} == {206}
    sizes = sorted(one.body_bytes for one in asked)
    assert sizes[-8:] == [PIECE_BYTES] * 8
    assert MIB in sizes
    assert sum(sizes) == len(large)


def test_a_layer_of_less_comes_by_one_connection(
    faulty_registry: FaultyRegistry, load: Load, large: bytes
) -> None:
    small = large[: PIECES_FROM_BYTES - 1]
    assert load(put(faulty_registry.host, small)).path.read_bytes() == small
    assert begins(faulty_registry, small) == [0]


def test_a_registry_without_parts(tmp_path: Path, load: Load, large: bytes) -> None:
    with FaultyRegistry(tmp_path / "registry", gives_parts=False) as registry:
        assert load(put(registry.host, large)).path.read_bytes() == large
        assert begins(registry, large) == [0]


def test_of_a_registry_without_parts_a_header_takes_no_more_than_it_needs(
    tmp_path: Path, store: Store, large: bytes
) -> None:
    """And its connection does not wait for the rest while the model is decided on."""
    with FaultyRegistry(tmp_path / "registry", gives_parts=False) as registry:
        reference = put(registry.host, large)
        host = make_host(
            environment={"HOME": str(tmp_path)}, working_directory=tmp_path, cpu_count=1, now_s=0,
            cache=store.root,
        )  # fmt: skip
        with find_model(
            reference, wanted=("F16",), host=host, store=store, progress=SilentProgress()
        ) as found:
            (request,) = [one for one in registry.requests if str(Digest.of(large)) in one.path]
            assert request.sent_bytes < len(large) // 2
            assert found.spec.file_bytes == len(large)


def test_a_part_that_breaks_is_gone_on_with(
    faulty_registry: FaultyRegistry, load: Load, large: bytes
) -> None:
    reference, path = put(faulty_registry.host, large), str(Digest.of(large))
    cut = faulty_registry.inject(CutResponse(after_bytes=3 * MIB), method="GET", path=path, skip=3)
    assert load(reference).path.read_bytes() == large
    assert cut.hits == 1
    # What came of it is kept, and no piece before it is asked for again.
    asked = begins(faulty_registry, large)
    broken = asked[3]
    assert broken + 3 * MIB in asked
    before = [begin for begin in asked if begin <= broken]
    assert len(before) == len(set(before))


def test_parts_that_are_refused_leave_one_connection(
    faulty_registry: FaultyRegistry, server: FileServer, load: Load, large: bytes
) -> None:
    """Storage that is good for one answer from an address, and then for none."""
    reference, path = put(faulty_registry.host, large), str(Digest.of(large))
    server.pages |= {"/first": Page(large, lives=1), "/second": Page(large)}
    for place, times in (("first", 1), ("second", None)):
        answer = Answer(status=307, headers={"Location": f"{server.url}/{place}"})
        faulty_registry.inject(answer, method="GET", path=path, times=times)
    assert load(reference).path.read_bytes() == large
    assert [asked for place, asked in server.asked if place == "/second"] == [f"bytes={MIB}-"]


def test_wrong_bytes_in_a_part(
    faulty_registry: FaultyRegistry, load: Load, store: Store, large: bytes
) -> None:
    reference, path = put(faulty_registry.host, large), str(Digest.of(large))
    bad = [faulty_registry.inject(Corrupt(), method="GET", path=path, skip=n) for n in (4, 13)]
    with pytest.raises(RegistryError, match="the registry says"):
        load(reference)
    assert [one.hits for one in bad] == [1, 1]
    assert not list(store.scratch("partial").glob("*"))
    faulty_registry.inject(Corrupt(), method="GET", path=path, skip=4)
    assert load(reference).path.read_bytes() == large
    assert store.verify() == ()


def test_a_token_that_is_used_up_is_renewed(tmp_path: Path, load: Load, large: bytes) -> None:
    login = TokenLogin(uses=7)
    with FaultyRegistry(tmp_path / "registry") as registry:
        reference = put(registry.host, large)
        pair = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": pair}}}))
        object.__setattr__(registry.site, "login", login)
        found = load(reference, DOCKER_CONFIG=str(tmp_path))
        assert found.path.read_bytes() == large
        assert len(login.scopes) > 1


def test_storage_elsewhere_sees_no_login(tmp_path: Path, load: Load, large: bytes) -> None:
    login = TokenLogin()
    with FaultyRegistry(tmp_path / "registry") as registry, file_server() as storage:
        reference, digest = put(registry.host, large), str(Digest.of(large))
        storage.pages["/blob"] = Page(large)
        registry.inject(
            Answer(status=307, headers={"Location": f"{storage.url}/blob?signature=s"}), method="GET",
            path=digest, times=None,
        )  # fmt: skip
        pair = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": pair}}}))
        object.__setattr__(registry.site, "login", login)
        assert load(reference, DOCKER_CONFIG=str(tmp_path)).path.read_bytes() == large
        assert set(storage.authorizations) == {""}
        assert len(storage.asked) == 10
        # One question of the registry showed the way for all pieces.
        assert len(ranges(registry, digest)) == 1
        assert 2 <= storage.most_at_once <= CONNECTIONS


def test_an_address_that_ends_its_life_is_asked_for_again(
    faulty_registry: FaultyRegistry, server: FileServer, load: Load, large: bytes
) -> None:
    reference, digest = put(faulty_registry.host, large), str(Digest.of(large))
    server.pages["/blob"] = Page(large, lives=5)
    server.on_gone = lambda: server.pages.update({"/blob": Page(large)})
    faulty_registry.inject(
        Answer(status=307, headers={"Location": f"{server.url}/blob"}), method="GET", path=digest, times=None
    )
    assert load(reference).path.read_bytes() == large
    assert len(ranges(faulty_registry, digest)) == 2


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, bytes], ...]:
    """The files of a model, by name."""
    whole = write_tiny_gguf(tmp_path_factory.mktemp("parts") / "whole.gguf", dim=64, ff=64)
    blobs = cut_gguf(whole, shard_bytes=whole.stat().st_size // 3)
    names = shard_names("tiny-F16", len(blobs))
    return tuple((str(name), blob.read()) for name, blob in zip(names, blobs, strict=True))


def test_several_layers_come_side_by_side(
    faulty_registry: FaultyRegistry, server: FileServer, load: Load, parts: tuple[tuple[str, bytes], ...]
) -> None:
    """None is answered before two are asked for."""
    pages = {f"/{Digest.of(data).hex}": Page(data) for _, data in parts}
    both = threading.Barrier(2, timeout=20)

    def answer(path: str) -> Page:
        if len(server.asked) < 2:
            both.wait()
        return pages[path]

    server.elsewhere = answer
    push(faulty_registry.host, "ai/tiny", tuple((GGUF, data, {NAMED: n}) for n, data in parts), config=CONFIG)
    for _, data in parts:
        faulty_registry.inject(
            Answer(status=307, headers={"Location": f"{server.url}/{Digest.of(data).hex}"}), method="GET",
            path=str(Digest.of(data)),
        )  # fmt: skip
    found = load(f"oci://{faulty_registry.host}/ai/tiny:1")
    assert [path.read_bytes() for path in found.files] == [data for _, data in parts]


def test_one_layer_that_is_refused_ends_the_others(
    faulty_registry: FaultyRegistry, load: Load, store: Store, parts: tuple[tuple[str, bytes], ...]
) -> None:
    push(faulty_registry.host, "ai/tiny", tuple((GGUF, data, {NAMED: n}) for n, data in parts), config=CONFIG)
    for _, data in parts[:-1]:
        faulty_registry.inject(Hang(), method="GET", path=str(Digest.of(data)))
    faulty_registry.inject(Answer(status=403), method="GET", path=str(Digest.of(parts[-1][1])))
    begin = time.monotonic()
    with pytest.raises(RegistryError, match="403"):
        load(f"oci://{faulty_registry.host}/ai/tiny:1")
    assert time.monotonic() - begin < 10
    assert store.verify() == ()


def test_ctrl_c_ends_all_connections_and_the_next_run_goes_on(
    faulty_registry: FaultyRegistry, tmp_path: Path, large: bytes
) -> None:
    reference, path = put(faulty_registry.host, large), str(Digest.of(large))
    silent = faulty_registry.inject(Hang(), method="GET", path=path, skip=4, times=None)
    command = make_edgebuild(tmp_path, tmp_path / "store")
    (tmp_path / "broken.lock").write_text("{")
    argv = ("model", "eval", reference, "--lock", "broken.lock")
    running = subprocess.Popen(
        [*command.program, *argv], env=dict(command.variables), cwd=tmp_path, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    partial = tmp_path / "store/v1/scratch/partial" / Digest.of(large).hex
    try:
        wait_until(lambda: silent.hits == CONNECTIONS)
        begin = time.monotonic()
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        assert time.monotonic() - begin < 10
    finally:
        running.kill()
        running.wait()
    silent.end()
    # Which of the first pieces were the three that came is the threads' affair: what follows on the first part is kept.
    have = partial.stat().st_size
    assert have >= MIB
    before = len(begins(faulty_registry, large))
    command.run(*argv, check=False)
    assert min(begins(faulty_registry, large)[before:]) == have
    assert "every entry is whole" in command.run("cache", "verify").stdout

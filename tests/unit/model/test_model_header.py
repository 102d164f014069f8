"""Headers of models that lie elsewhere: nothing but their beginning is fetched, by servers of every kind."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgebuild.artifacts.beginning import fetch_beginning
from edgebuild.artifacts.download import Wanted
from edgebuild.artifacts.store import Store
from edgebuild.artifacts.tries import Patience
from edgebuild.errors import ModelError, ToolError
from edgebuild.gguf import read_gguf_header
from edgebuild.gguf_shards import cut_gguf, shard_names
from edgebuild.host import Host
from edgebuild.model.source import find_model
from edgebuild.model_spec import ModelSpec, make_model_spec
from edgebuild.oci.digest import Digest
from tests.support.file_server import FileServer, Page
from tests.support.hub import TOKEN, LoopbackHub
from tests.support.tiny_gguf import write_tiny_gguf
from tests.unit.artifacts.telling import Told
from tests.unit.model.conftest import Load

MIB = 1 << 20
QUICK = Patience(attempts=2, deadline_s=20, backoff_s=0.01, idle_s=0.5)
Look = Callable[..., ModelSpec]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model with a header of more than 1 MiB, and several MiB behind it."""
    path = write_tiny_gguf(
        tmp_path_factory.mktemp("large") / "a.gguf", dim=64, ff=64, vocabulary_tokens=60_000
    )
    assert MIB < read_gguf_header(path).header_bytes < 2 * MIB
    return path.read_bytes()


@pytest.fixture
def look(host: Host, store: Store, told: Told) -> Look:
    def look(reference: str, *wanted: str) -> ModelSpec:
        with find_model(
            reference, wanted=wanted or ("Q4_K_M",), host=host, store=store, progress=told
        ) as found:
            return found.spec

    return look


def local_spec(data: bytes, folder: Path, name: str) -> ModelSpec:
    path = folder / "local.gguf"
    path.write_bytes(data)
    return make_model_spec(read_gguf_header(path), file_name=name)


def test_only_the_beginning_is_asked_for(
    hub: LoopbackHub, look: Look, large: bytes, store: Store, tmp_path: Path
) -> None:
    hub.add("acme/large", {"large-F16.gguf": large}, licence="mit")
    spec = look("hf://acme/large")
    assert [asked for _, asked in hub.store.asked] == [f"bytes=0-{MIB - 1}", f"bytes={MIB}-{2 * MIB - 1}"]
    expected = local_spec(large, tmp_path, "large-F16.gguf")
    assert spec.licence == "mit"
    assert (spec.tensors, spec.file_bytes, spec.header_bytes) == (
        expected.tensors,
        len(large),
        expected.header_bytes,
    )
    assert store.find_download(Digest.of(large), "large-F16.gguf") is None
    assert not list((store.root / "v1/temporary").glob("*"))


@pytest.mark.parametrize("tail", [0, 70 << 20])
def test_the_rest_is_fetched_from_where_the_header_ended(
    hub: LoopbackHub, host: Host, store: Store, told: Told, large: bytes, tail: int
) -> None:
    """Of one connection and of several; the hub is asked once what there is."""
    data = large + bytes(tail)
    hub.add("acme/large", {"large-F16.gguf": data})
    with find_model("hf://acme/large", wanted=("Q4_K_M",), host=host, store=store, progress=told) as found:
        looked = len(hub.store.asked)
        hub.storage(data).cuts = [MIB]
        model = found.load()
    assert model.path.read_bytes() == data
    assert model.spec == found.spec
    assert hub.store.asked[looked][1] == f"bytes={2 * MIB}-"
    assert all(int(asked[6:].partition("-")[0]) >= 2 * MIB for _, asked in hub.store.asked[looked:])
    assert len(hub.api_calls) == 1
    assert store.verify() == ()
    assert not list((store.root / "v1/temporary").glob("*"))


def test_of_several_files_each_gives_its_header_and_then_its_rest(
    hub: LoopbackHub, host: Host, store: Store, told: Told, large: bytes, tmp_path: Path
) -> None:
    """Side by side: none is answered before two are asked for."""
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(large)
    blobs = [blob.read() for blob in cut_gguf(whole, shard_bytes=len(large) // 2)]
    names = [str(name) for name in shard_names("large-F16", len(blobs))]
    hub.add("acme/large", dict(zip(names, blobs, strict=True)))
    with find_model("hf://acme/large", wanted=("Q4_K_M",), host=host, store=store, progress=told) as found:
        assert all(
            store.find_download(Digest.of(blob), name) is None
            for name, blob in zip(names, blobs, strict=True)
        )
        both = threading.Barrier(2, timeout=20)
        pages, looked = dict(hub.store.pages), len(hub.store.asked)
        hub.store.pages.clear()

        def answer(path: str) -> Page:
            if len(hub.store.asked) - looked < 2:
                both.wait()
            return pages[path]

        hub.store.elsewhere = answer
        model = found.load()
    assert [path.read_bytes() for path in model.files] == blobs
    assert (model.spec, model.spec.file_name) == (found.spec, "large-F16.gguf")
    assert store.verify() == ()


def test_a_longer_beginning_of_an_earlier_run_is_kept(
    hub: LoopbackHub, host: Host, store: Store, told: Told, large: bytes
) -> None:
    hub.add("acme/large", {"large-F16.gguf": large})
    partial = store.scratch("partial") / Digest.of(large).hex
    partial.write_bytes(large[: 3 * MIB])
    with find_model("hf://acme/large", wanted=("Q4_K_M",), host=host, store=store, progress=told) as found:
        assert found.load().path.read_bytes() == large
    assert hub.store.asked[-1][1] == f"bytes={3 * MIB}-"


def test_a_beginning_of_another_file_decides_nothing(
    hub: LoopbackHub, host: Host, store: Store, told: Told, large: bytes, models: dict[str, bytes]
) -> None:
    """The whole file is fetched anew and kept; what was decided by the beginning is not gone on with."""
    other = models["0"] + bytes(len(large) - len(models["0"]))
    hub.add("acme/large", {"large-F16.gguf": large})
    hub.storage(large).body = other
    with find_model("hf://acme/large", wanted=("Q4_K_M",), host=host, store=store, progress=told) as found:
        hub.storage(large).body = large
        with pytest.raises(ModelError, match="the beginning that came first was that of another file"):
            found.load()
    assert store.find_download(Digest.of(large), "large-F16.gguf") is not None
    assert store.verify() == ()


def test_what_the_store_has_is_read_there(hub: LoopbackHub, look: Look, load: Load, large: bytes) -> None:
    hub.add("acme/large", {"large-F16.gguf": large})
    load("hf://acme/large")
    asked = len(hub.store.asked)
    assert look("hf://acme/large").file_bytes == len(large)
    assert len(hub.store.asked) == asked


def test_a_server_without_ranges_is_left_midway(server: FileServer, look: Look, large: bytes) -> None:
    server.pages["/a.gguf"] = Page(large, ranges=False)
    spec = look(f"{server.url}/a.gguf#sha256={hashlib.sha256(large).hexdigest()}")
    assert spec.file_bytes == len(large)


def test_a_server_that_tells_no_length_gives_all_of_it(
    server: FileServer, look: Look, large: bytes, told: Told, store: Store
) -> None:
    server.pages["/a.gguf"] = Page(large, ranges=False, tells_length=False)
    assert look(f"{server.url}/a.gguf#sha256={hashlib.sha256(large).hexdigest()}").file_bytes == len(large)
    assert any("does not tell how long a.gguf is; fetching all of it" in note for note in told.notes)
    assert store.find_download(Digest.of(large), "a.gguf") is not None


def test_what_fails_for_a_while_is_tried_again(hub: LoopbackHub, look: Look, large: bytes) -> None:
    hub.add("acme/large", {"large-F16.gguf": large})
    hub.storage(large).failures = [503]
    hub.storage(large).cuts = [1000]
    assert look("hf://acme/large").file_bytes == len(large)
    assert [asked for _, asked in hub.store.asked][:3] == [
        f"bytes=0-{MIB - 1}", f"bytes=0-{MIB - 1}", f"bytes=1000-{MIB - 1}",
    ]  # fmt: skip


def test_what_stays_away_is_one_line(server: FileServer, tmp_path: Path) -> None:
    def fetch(url: str) -> None:
        wanted = Wanted(url=url, file="a.gguf", digest=Digest.of(b""), size_bytes=0, title="a.gguf")
        fetch_beginning(wanted, tmp_path / "a", upto=10, environment={}, patience=QUICK)

    with pytest.raises(ToolError, match="404"):
        fetch(f"{server.url}/gone.gguf")
    server.pages["/a.gguf"] = Page(b"x" * 100, failures=[503, 503, 503])
    with pytest.raises(ToolError, match="tried 2 times"):
        fetch(f"{server.url}/a.gguf")


def test_the_token_is_the_hubs_alone(
    hub: LoopbackHub, store: Store, host: Host, told: Told, large: bytes
) -> None:
    hub.add("acme/private", {"a-F16.gguf": large}, token=TOKEN)
    knowing = replace(host, environment={**host.environment, "HF_TOKEN": TOKEN})
    with find_model("hf://acme/private", wanted=("Q8_0",), host=knowing, store=store, progress=told) as found:
        found.load()
    assert set(hub.store.authorizations) == {""}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: b"<html>" + data, "a-F16.gguf: not a GGUF file"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "a-F16.gguf: damaged GGUF header"),
        (lambda data: data[: len(data) // 2], "a-F16.gguf: cut short"),
    ],
)
def test_damage_is_named_without_a_folder_of_this_machine(
    hub: LoopbackHub, look: Look, large: bytes, spoil: Callable[[bytes], bytes], said: str
) -> None:
    hub.add("acme/bad", {"a-F16.gguf": spoil(large)})
    with pytest.raises(ModelError) as caught:
        look("hf://acme/bad")
    assert caught.value.message.startswith(said)
    assert "\n" not in caught.value.message

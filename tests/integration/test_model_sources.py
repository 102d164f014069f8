"""Fetched models at the command line: whole builds, and downloads that end early however they end."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgebuild.oci.digest import Digest
from tests.integration.test_model_registry import push
from tests.support.bench import assert_failed
from tests.support.built import Edgebuild, config_files, make_edgebuild
from tests.support.hub import TOKEN, LoopbackHub, running_hub
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Completed
from tests.support.small_disk import SmallDisk
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.waiting import wait_until

# Fetches all of a model, and then has no packages to measure it with.
FETCH = ("model", "eval", "hf://acme/tiny", "--lock", "broken.lock")
REFUSED = "broken.lock"
MIB = 1 << 20
OCI_GGUF = "application/vnd.docker.ai.gguf.v3"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running_hub() as running:
        yield running


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Some megabytes."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return write_tiny_gguf(path, dim=512, ff=2048, layers=2).read_bytes()


@pytest.fixture
def command(tmp_path: Path, hub: LoopbackHub) -> Edgebuild:
    """The command with an empty store and the hub; FETCH ends once the model is fetched, and nothing fits narrow."""
    made = make_edgebuild(tmp_path, tmp_path / "store")
    (tmp_path / "narrow.yaml").write_text("extends: x86\nschema_version: 1\nname: narrow\nmemory: 1MiB\n")
    (tmp_path / "broken.lock").write_text("{")
    return Edgebuild(
        folder=made.folder, variables={**made.variables, "HF_ENDPOINT": hub.url, "HOME": str(tmp_path)}
    )


def partial_sizes(store: Path) -> list[int]:
    return [path.stat().st_size for path in (store / "v1/scratch/partial").glob("*")]


def test_image_of_a_hubs_model_says_where_it_came_from(
    edgebuild: Edgebuild, built_lock: Path, hub: LoopbackHub, gguf: bytes
) -> None:
    commit = hub.add(
        "acme/alert", {"alert-F16.gguf": gguf, "alert-Q3_K_S.gguf": b"never asked for"}, token=TOKEN
    )
    argv = (
        "image",
        "--profile",
        "x86",
        "--quantization",
        "Q8_0",
        "--no-test",
        "--lock",
        built_lock,
        "--json",
    )
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    done = edgebuild.run(*argv, "--model", "hf://acme/alert", env=env)
    source: dict[str, str | None] = {
        "kind": "huggingface",
        "reference": f"hf://acme/alert@{commit}/alert-F16.gguf",
        "revision": commit,
        "file": "alert-F16.gguf",
        "digest": f"sha256:{hashlib.sha256(gguf).hexdigest()}",
        "licence": None,
    }
    document = json.loads(done.stdout)
    assert document["model"]["source"] == source
    assert "hash " not in done.stderr, "the file was hashed again"
    assert TOKEN not in done.stderr + done.stdout
    files = config_files(edgebuild.folder / "build", document["images"][0])
    assert json.loads(files["etc/edgebuild/model.json"])["source"] == source | {
        "quantization": "F16", "quantized_by": "llama_model_quantize Q8_0", "importance_matrix": None,
    }  # fmt: skip
    assert str(source["reference"]) in files["etc/edgebuild/README.md"].decode()
    hub.server.pages.clear()
    env = {"HF_ENDPOINT": hub.url}
    again = edgebuild.run(*argv, "--model", str(source["reference"]), env=env)
    assert json.loads(again.stdout)["index"]["digest"] == document["index"]["digest"]


@pytest.mark.parametrize("quantization", [None, "Q4_0", "auto"])
def test_what_cannot_fit_is_refused_by_its_header_as_a_local_file_is(
    command: Edgebuild, hub: LoopbackHub, registry: Registry, gguf: bytes, quantization: str | None
) -> None:
    hub.add("acme/tiny", {"tiny-F16.gguf": gguf})
    push(registry.host, "acme/tiny", ((OCI_GGUF, gguf, {}),), config=("application/json", b"{}"))
    (command.folder / "tiny-F16.gguf").write_bytes(gguf)
    argv = (
        "image",
        "--profile",
        "./narrow.yaml",
        *(("--quantization", quantization) if quantization else ()),
    )
    local = command.run(*argv, "--model", "tiny-F16.gguf", check=False)
    assert_failed(local, 4, "does not fit narrow")
    for reference in ("hf://acme/tiny", f"oci://{registry.host}/acme/tiny:1"):
        remote = command.run(*argv, "--model", reference, check=False)
        assert (remote.returncode, error_of(remote)) == (4, error_of(local))
    assert [asked for _, asked in hub.store.asked] == [f"bytes=0-{MIB - 1}"]
    blob = f"/v2/acme/tiny/blobs/{Digest.of(gguf)}"
    assert [one.body_bytes for one in registry.accesses() if one.path == blob and one.method == "GET"] == [
        MIB
    ]
    assert partial_sizes(command.folder / "store") == []
    assert not (command.folder / "build").exists()


def test_a_model_without_a_licence_is_refused_by_its_header(
    command: Edgebuild, hub: LoopbackHub, gguf: bytes
) -> None:
    commit = hub.add("acme/tiny", {"tiny-F16.gguf": gguf})
    (command.folder / "edgebuild.yaml").write_text(
        "schema_version: 1\nmodel: hf://acme/tiny\nprofiles: [x86]\ngates: {licence_required: true}\n"
    )
    said = f"neither the model nor its source (hf://acme/tiny@{commit}/tiny-F16.gguf) states a licence"
    assert_failed(command.run("image", check=False), 4, said)
    assert [asked for _, asked in hub.store.asked] == [f"bytes=0-{MIB - 1}"]


def error_of(done: Completed) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_fetching_that_is_ended_goes_on_in_the_next_run(
    command: Edgebuild, hub: LoopbackHub, gguf: bytes, number: signal.Signals
) -> None:
    hub.add("acme/tiny", {"tiny-F16.gguf": gguf})
    hub.storage(gguf).stalls = [300_000]
    store, log = command.folder / "store", command.folder / "log"
    argv = [*command.program, *FETCH]
    with log.open("wb") as out:
        running = subprocess.Popen(
            argv, env=dict(command.variables), cwd=command.folder, stdin=subprocess.DEVNULL, stdout=out,
            stderr=out,
        )  # fmt: skip
        wait_until(lambda: partial_sizes(store) == [300_000])
        begin = time.monotonic()
        running.send_signal(number)
        code = running.wait(60)
    assert time.monotonic() - begin < 10
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert "Traceback" not in log.read_text()
    assert_failed(command.run(*FETCH, check=False), 3, REFUSED)
    assert [asked for _, asked in hub.store.asked] == ["", "bytes=300000-"]
    assert partial_sizes(store) == []
    assert "every entry is whole" in command.run("cache", "verify").stdout


def test_disk_that_fills_up_midway(
    command: Edgebuild, hub: LoopbackHub, gguf: bytes, make_disk: Callable[[int], SmallDisk]
) -> None:
    hub.add("acme/tiny", {"tiny-F16.gguf": gguf})
    disk = make_disk(len(gguf) + (2 << 20))
    disk.fill(leave_bytes=len(gguf) // 2)
    argv = (*FETCH, "--cache", disk.path / "store")
    done = command.run(*argv, check=False)
    assert_failed(done, 5, "no space is left for the store")
    disk.make_room()
    assert_failed(command.run(*argv, check=False), 3, REFUSED)
    assert hub.store.asked[-1][1].startswith("bytes=")
    assert "every entry is whole" in command.run("cache", "verify", "--cache", disk.path / "store").stdout


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("hf://acme/gone", 4, "hf://acme/gone is not there"),
        ("hf://acme", 2, "names no repository"),
        ("https://h.example/a.gguf", 2, "without its sha256"),
        ("oci://127.0.0.1:9/a:1", 7, "cannot connect"),
        ("ftp://h.example/a.gguf", 2, "is no source of models"),
    ],
)
def test_failures_are_one_line_a_hint_and_a_code(
    command: Edgebuild, model: str, code: int, said: str
) -> None:
    assert_failed(command.run("fit", "--model", model, check=False), code, said)

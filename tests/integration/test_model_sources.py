"""Fetched models at the command line: whole builds, and downloads that end early however they end."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bench import assert_failed
from tests.support.built import Edgebuild, config_files, make_edgebuild
from tests.support.hub import TOKEN, LoopbackHub, running_hub
from tests.support.small_disk import SmallDisk
from tests.support.tiny_gguf import write_tiny_gguf

FETCH = ("image", "--profile", "./narrow.yaml", "--model", "hf://acme/tiny")
REFUSED = "does not fit narrow"


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
    """The command with an empty store and the hub; FETCH refuses the model once it is fetched."""
    made = make_edgebuild(tmp_path, tmp_path / "store")
    (tmp_path / "narrow.yaml").write_text("extends: x86\nschema_version: 1\nname: narrow\nmemory: 1MiB\n")
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
    assert_failed(command.run(*FETCH, check=False), 4, REFUSED)
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
    assert_failed(command.run(*argv, check=False), 4, REFUSED)
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


def wait_until(done: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)

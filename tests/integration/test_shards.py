"""Models in several files, all the way: cut, baked, fetched, quantised; llama.cpp answers from them as from one file."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgebuild.gguf_shards import cut_gguf
from edgeserve.engine.opening import open_llama
from edgeserve.engine.protocol import EngineError, Request, Sampling, Token
from edgeserve.log import Log
from edgeserve.settings import EngineSettings
from tests.support.bench import assert_failed
from tests.support.built import Edgebuild, config_files
from tests.support.faulty_registry import CutRequest, FaultyRegistry
from tests.support.hub import running_hub
from tests.support.shards import write_shards
from tests.support.tiny_gguf import BOS

SHARD = "1500KiB"


@pytest.fixture(scope="module")
def parts(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The demo model in 16 bit as several files."""
    folder = tmp_path_factory.mktemp("parts")
    return write_shards(cut_gguf(demo_model, shard_bytes=2 << 20), folder, "alert-F16")


class Build:
    """`edgebuild image` without a smoke test, with what it wrote."""

    def __init__(self, edgebuild: Edgebuild, lock: Path) -> None:
        self._edgebuild = edgebuild
        self._lock = lock
        self.told = ""

    def __call__(
        self, *arguments: str | Path, profiles: tuple[str, ...] = ("x86",), output: str = "build", **env: str
    ) -> dict[str, Any]:
        devices = [option for profile in profiles for option in ("--profile", profile)]
        usual = ("--no-test", "--lock", self._lock, "--output", output, "--json")
        done = self._edgebuild.run("image", *devices, *usual, *arguments, env=env)
        self.told = done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def blob(self, digest: str, output: str = "build") -> Path:
        return self._edgebuild.folder / output / "blobs" / digest.replace(":", "/")

    def config(self, document: dict[str, Any], output: str = "build") -> dict[str, Any]:
        """Read model.json and runtime.json of the first image."""
        files = config_files(self._edgebuild.folder / output, document["images"][0])
        return {name: json.loads(files[f"etc/edgebuild/{name}.json"]) for name in ("model", "runtime")}


@pytest.fixture
def build(edgebuild: Edgebuild, built_lock: Path) -> Build:
    return Build(edgebuild, built_lock)


def model_layers(document: dict[str, Any]) -> list[str]:
    """Digests of the model's layers, which all images share and which lie lowest."""
    found = []
    for image in document["images"]:
        roles = [layer["role"] for layer in image["layers"]]
        count = roles.count("model")
        assert roles[:count] == ["model"] * count
        assert image["model_bytes"] == sum(layer["size_bytes"] for layer in image["layers"][:count])
        found.append([layer["digest"] for layer in image["layers"][:count]])
        assert found[-1] == [layer["diff_id"] for layer in image["layers"][:count]]
    assert all(digests == found[0] for digests in found)
    return found[0]


def extract(build: Build, digests: list[str], folder: Path) -> tuple[Path, ...]:
    """Unpack model layers as a device does."""
    paths = []
    for digest in digests:
        with tarfile.open(build.blob(digest)) as archive:
            assert archive.getnames()[0] == "models"
            (member,) = (member for member in archive if member.isfile())
            content = archive.extractfile(member)
            assert content is not None
            (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
            with content, (folder / member.name).open("wb") as file:
                shutil.copyfileobj(content, file)
            paths.append(folder / member.name)
    return tuple(paths)


def answer(files: tuple[Path, ...], llama_host: Path) -> list[int]:
    """Ask llama.cpp, greedily."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(llama_host))
        patch.setenv("LLAMA_CPP_LIB_PATH", str(llama_host / "llama_cpp" / "lib"))
        settings = EngineSettings(context_tokens=256, batch_tokens=64, slots=1, threads=1)
        engine = open_llama(tuple(map(str, files)), settings, Log())
        prompt = (BOS, *engine.tokenize("alt 42 m; obstacle 30 m left; battery 18 %", special=False))
        engine.submit(Request(id="a", prompt=prompt, output_tokens=24, sampling=Sampling(temperature=0.0)))
        tokens: list[int] = []
        while True:
            for event in engine.step():
                if not isinstance(event, Token):
                    engine.close()
                    return tokens
                tokens.append(event.token)


def test_a_model_above_the_size_is_several_layers(build: Build, llama_host: Path, tmp_path: Path) -> None:
    argv, devices = ("--quantization", "Q8_0", "--shard-size", SHARD), ("pi4", "x86")
    cut = build(*argv, profiles=devices)
    assert build.told.count("model edge-alert-4m.Q8_0-0000") == 3
    digests = model_layers(cut)
    assert len(digests) == 3
    # What is known of a file is known of its shards: nothing is copied or hashed again.
    assert build(*argv, profiles=devices)["index"] == cut["index"]
    assert "model edge" not in build.told
    assert build(*argv, profiles=devices, output="other")["index"]["digest"] == cut["index"]["digest"]
    documents = build.config(cut)
    files = extract(build, digests, tmp_path / "cut")
    assert documents["runtime"]["model"]["files"] == [f"/models/{path.name}" for path in files]
    for path, described, digest in zip(files, documents["model"]["files"], digests, strict=True):
        assert (described["path"], described["size_bytes"]) == (f"/models/{path.name}", path.stat().st_size)
        framed = (
            bytes.fromhex(described["digest_before_hex"])
            + path.read_bytes()
            + bytes(described["digest_after_zero_bytes"])
        )
        assert described["digest"] == digest == f"sha256:{hashlib.sha256(framed).hexdigest()}"
    # The label names the whole: `printf '%s\n' sha256:… sha256:… | sha256sum`.
    config = json.loads(build.blob(cut["images"][0]["config_digest"]).read_bytes())["config"]
    lines = "".join(f"{digest}\n" for digest in digests)
    identity = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert config["Labels"]["dev.edgebuild.model.digest"] == identity
    # The same model in one layer answers the same.
    whole = build("--quantization", "Q8_0", "--shard-size", "none")
    (alone,) = extract(build, model_layers(whole), tmp_path / "whole")
    assert answer(files, llama_host) == answer((alone,), llama_host) == answer((files[0],), llama_host)
    # Without one of them llama.cpp refuses, so an image must bring all.
    files[2].unlink()
    with pytest.raises(EngineError, match="does not load"):
        answer(files, llama_host)


def test_files_that_are_several_already_are_layers_as_they_are(
    build: Build, parts: tuple[Path, ...], demo_model: Path, tmp_path: Path
) -> None:
    given = build("--model", parts[0], "--quantization", "F16")
    digests = model_layers(given)
    assert [path.read_bytes() for path in extract(build, digests, tmp_path)] == [
        path.read_bytes() for path in parts
    ]
    source = given["model"]["source"]
    assert source["file"] == source["reference"] == parts[0].name
    assert source["files"] == [{"file": path.name, "digest": None} for path in parts]
    assert given["index"] == build("--model", parts[0].parent, "--quantization", "F16")["index"]
    # Cut from one file at the same places they are the same layers.
    own = shutil.copy(demo_model, tmp_path / "alert-F16.gguf")
    cut = build("--model", own, "--quantization", "F16", "--shard-size", "2MiB")
    assert model_layers(cut) == digests


def test_quantising_several_files_is_quantising_the_model(
    build: Build, parts: tuple[Path, ...], demo_model: Path, tmp_path: Path
) -> None:
    own = shutil.copy(demo_model, tmp_path / "alert-F16.gguf")
    one = build("--model", own, "--quantization", "Q4_0")
    several = build("--model", parts[0], "--quantization", "Q4_0")
    assert model_layers(several) == model_layers(one)
    assert len(model_layers(one)) == 1
    assert build.config(several)["model"]["files"][0]["path"] == "/models/alert.Q4_0.gguf"


def test_a_hubs_model_in_several_files(build: Build, parts: tuple[Path, ...]) -> None:
    files = {f"F16/{path.name}": path.read_bytes() for path in parts}
    with running_hub() as hub:
        commit = hub.add("acme/alert", {**files, "alert-Q3_K_S.gguf": b"never asked for"})
        argv = ("--model", "hf://acme/alert", "--quantization", "F16")
        first = build(*argv, HF_ENDPOINT=hub.url)
        assert f"and the {len(parts) - 1} that belong to it" in build.told
        asked = len(hub.store.asked)
        again = build("--model", f"hf://acme/alert@{commit}", "--quantization", "F16", HF_ENDPOINT=hub.url)
        assert len(hub.store.asked) == asked
    source = first["model"]["source"]
    assert source["reference"] == f"hf://acme/alert@{commit}/F16/{parts[0].name}"
    assert source["digest"] is None
    assert source["files"] == [
        {"file": path.name, "digest": f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"}
        for path in parts
    ]
    assert first["index"]["digest"] == again["index"]["digest"]


@pytest.fixture
def broken(parts: tuple[Path, ...], tmp_path: Path) -> tuple[Path, ...]:
    """Copies that a test may damage."""
    return tuple(Path(shutil.copy(path, tmp_path)) for path in parts)


def test_what_is_missing_or_mixed_up_is_one_line(edgebuild: Edgebuild, broken: tuple[Path, ...]) -> None:
    def refused(model: Path, said: str) -> None:
        assert_failed(edgebuild.run("fit", "--profile", "x86", "--model", model, check=False), 4, said)

    refused(broken[1], f"{broken[1].name} in {broken[1].parent} is file 2 of a model in {len(broken)} files")
    first, second = broken[0].read_bytes(), broken[1].read_bytes()
    broken[1].write_bytes(first)
    refused(broken[0], f"{broken[1]}: split.no is 0, not 1")
    broken[1].write_bytes(second[:-1])
    refused(broken[0], f"{broken[1]}: cut short")
    broken[1].unlink()
    refused(broken[0].parent, f"lacks {broken[1].name} of a model in {len(broken)} files")


@pytest.mark.parametrize("size", ["1KiB", "much"])
def test_sizes_that_are_none(edgebuild: Edgebuild, size: str) -> None:
    done = edgebuild.run("image", "--profile", "x86", f"--shard-size={size}", check=False)
    assert_failed(done, 2, "--shard-size")


def test_shards_go_to_a_registry_without_a_layout(
    edgebuild: Edgebuild, built_lock: Path, faulty_registry: FaultyRegistry, demo_model: Path
) -> None:
    # A file of which nothing is known yet: hashed while it is sent.
    own = shutil.copy(demo_model, edgebuild.folder / "alert-F16.gguf")
    argv = (
        "image", "--profile", "x86", "--no-test", "--lock", built_lock, "--model", own,
        "--quantization", "F16", "--shard-size", "2MiB", "--tag", faulty_registry.reference("acme/alert", "1"),
    )  # fmt: skip
    # The second shard breaks midway and goes on.
    broken = faulty_registry.inject(CutRequest(after_bytes=500_000), method="PATCH", skip=1)
    pushed = edgebuild.json(*argv, "--no-layout", "--push")
    assert broken.hits == 1
    assert len(model_layers(pushed)) == 4
    for digest in model_layers(pushed):
        faulty_registry.store.blob("acme/alert", digest)  # raises where it is missing
    # Known by its seals, nothing of the model is read or sent again; and a layout is the same image.
    before = len(faulty_registry.requests)
    assert edgebuild.json(*argv, "--no-layout", "--push")["index"]["digest"] == pushed["index"]["digest"]
    sent = [request for request in faulty_registry.requests[before:] if "/blobs/uploads/" in request.path]
    assert sum(request.received_bytes for request in sent) == 0
    assert edgebuild.json(*argv)["index"]["digest"] == pushed["index"]["digest"]

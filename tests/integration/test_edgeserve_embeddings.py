"""Embeddings, by the official `openai` client, compared with llama.cpp's own path: a bare loop over the same library."""

import base64
import ctypes
import json
import math
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
from gguf import PoolingType
from openai import OpenAI

from edgeserve.engine.embedding import EmbeddingEngine
from edgeserve.engine.opening import open_llama
from edgeserve.engine.protocol import (
    EmbeddingRequest,
    EngineError,
    Finish,
    FinishReason,
    Request,
    Sampling,
    Vector,
)
from edgeserve.log import Log
from edgeserve.settings import EngineSettings
from tests.support.asking import COMPLETION, ask, connect
from tests.support.llama import (
    MODEL_NAME,
    ServerProcess,
    run_edgeserve,
    running_server,
    server_environment,
    write_runtime,
)
from tests.support.openai_client import openai_client
from tests.support.scraping import scrape
from tests.support.tiny_embedder import CLS, DIM, SEP, write_tiny_bert
from tests.support.tiny_gguf import BOS, write_tiny_gguf

_PATH = "/v1/embeddings"
_COMPUTED = 'edgeserve_prompt_tokens_total{source="computed"}'
_TEXTS = ("obstacle ahead", "battery low", "the left", "right right right the left", "a")
_SETTINGS: Mapping[str, Any] = {
    "engine.context_tokens": 256,
    "server.limits.prompt_tokens": 120,
    "server.limits.output_tokens": 64,
}


def _write(folder: Path, kind: str) -> Path:
    """Write a model: a BERT that takes the mean or its first token, or a Llama that takes the last."""
    if kind == "last":
        return write_tiny_gguf(folder / "last.gguf", dtype="f32", pooling=PoolingType.LAST)
    pooling = {"mean": PoolingType.MEAN, "cls": PoolingType.CLS}[kind]
    return write_tiny_bert(folder / f"{kind}.gguf", pooling=pooling)


@pytest.fixture(scope="module")
def server(llama_host: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("bert")
    with running_server(llama_host, folder, _write(folder, "mean"), _SETTINGS) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with openai_client(server) as client:
        yield client


# What llama.cpp's examples do (examples/embedding): one text, one pass, one vector, of length 1.
_BARE = """
import ctypes, json, math, sys
sys.path.insert(0, sys.argv[1])
from llama_cpp import llama_cpp as api
ctypes.CDLL(sys.argv[1] + "/llama_cpp/lib/libggml.so").ggml_backend_load_all_from_path(
    (sys.argv[1] + "/llama_cpp/lib").encode())
model = api.llama_model_load_from_file(sys.argv[2].encode(), api.llama_model_default_params())
params = api.llama_context_default_params()
params.n_ctx = params.n_batch = params.n_ubatch = 128
params.n_threads = params.n_threads_batch = 1
params.embeddings = True
size, found = api.llama_model_n_embd(model), []
for text in json.loads(sys.argv[3]):
    context = api.llama_init_from_model(model, params)
    data, tokens = text.encode(), (ctypes.c_int32 * 512)()
    count = api.llama_tokenize(api.llama_model_get_vocab(model), data, len(data), tokens, 512, True, False)
    assert api.llama_decode(context, api.llama_batch_get_one(tokens, count)) == 0
    values = api.llama_get_embeddings_seq(context, 0)[:size]
    length = math.sqrt(sum(value * value for value in values))
    found.append([[value / length for value in values], count])
print(json.dumps(found))
"""


def _bare(llama_host: Path, model: Path, *texts: str) -> list[tuple[list[float], int]]:
    arguments = [sys.executable, "-c", _BARE, str(llama_host), str(model), json.dumps(texts)]
    environment = {"LLAMA_CPP_LIB_PATH": str(llama_host / "llama_cpp" / "lib")}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return [(vector, count) for vector, count in json.loads(done.stdout)]


def _is_close(one: Any, other: Any, tolerance: float = 1e-4) -> bool:
    return len(one) == len(other) and all(abs(a - b) < tolerance for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["mean", "cls", "last"])
def test_as_llama_cpp_makes_them(llama_host: Path, tmp_path: Path, kind: str) -> None:
    model = _write(tmp_path, kind)
    expected = _bare(llama_host, model, *_TEXTS)
    with running_server(llama_host, tmp_path, model, _SETTINGS) as server:
        together = ask(server, _PATH, {"model": MODEL_NAME, "input": list(_TEXTS)}).document
        alone = [ask(server, _PATH, {"model": MODEL_NAME, "input": text}).document for text in _TEXTS]
    assert [item["index"] for item in together["data"]] == list(range(len(_TEXTS)))
    for number, (vector, count) in enumerate(expected):
        assert _is_close(together["data"][number]["embedding"], vector)
        assert _is_close(alone[number]["data"][0]["embedding"], vector)
        assert alone[number]["usage"] == {"prompt_tokens": count, "total_tokens": count}
        assert math.isclose(sum(value * value for value in vector), 1, rel_tol=1e-4)
    assert together["usage"]["prompt_tokens"] == sum(count for _, count in expected)
    assert not _is_close(expected[0][0], expected[1][0], 0.01)


def test_by_the_client(client: OpenAI) -> None:
    # Without a format the client asks for base64 and reads it.
    plain = client.embeddings.create(model=MODEL_NAME, input=list(_TEXTS[:2]))
    numbers = client.embeddings.create(model=MODEL_NAME, input=list(_TEXTS[:2]), encoding_format="float")
    raw = client.embeddings.create(model=MODEL_NAME, input=_TEXTS[0], encoding_format="base64")
    assert (plain.object, plain.model, plain.data[1].index) == ("list", MODEL_NAME, 1)
    for one, other in zip(plain.data, numbers.data, strict=True):
        assert len(one.embedding) == DIM
        assert _is_close(one.embedding, other.embedding, 1e-8)
    data = base64.b64decode(raw.data[0].embedding)  # type: ignore[arg-type]
    assert _is_close(struct.unpack(f"<{DIM}f", data), plain.data[0].embedding, 1e-5)


def test_tokens(client: OpenAI) -> None:
    # "▁obstacle" and "▁ahead" follow the five special tokens; text gets the marks of its ends, tokens are as they are.
    text = client.embeddings.create(model=MODEL_NAME, input="Obstacle ahead")
    tokens = client.embeddings.create(model=MODEL_NAME, input=[CLS, 5, 6, SEP])
    several = client.embeddings.create(model=MODEL_NAME, input=[[CLS, 5, 6, SEP], [CLS, 5, SEP]])
    assert _is_close(text.data[0].embedding, tokens.data[0].embedding, 1e-6)
    assert _is_close(several.data[0].embedding, tokens.data[0].embedding)
    assert several.usage.prompt_tokens == 7


def test_many_texts(client: OpenAI) -> None:
    texts = [f"{left} {right}" for left in _TEXTS for right in "abcdefghijklmnopqrst"] * 5
    answer = client.embeddings.create(model=MODEL_NAME, input=texts)
    assert [item.index for item in answer.data] == list(range(500))
    for number in (0, 99, 250):
        alone = client.embeddings.create(model=MODEL_NAME, input=texts[number]).data[0].embedding
        assert _is_close(answer.data[number].embedding, alone)
        assert _is_close(answer.data[(number + 100) % 500].embedding, alone)


def test_control_tokens_in_text_stay_text(client: OpenAI) -> None:
    with_mark = client.embeddings.create(model=MODEL_NAME, input="a [SEP] a").usage.prompt_tokens
    assert with_mark > 2 + 2 + 1


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": {"a": 1}}, "input"),
        ({"input": 7}, "input"),
        ({"input": [True]}, "input[0]"),
        ({"input": [1, "a"]}, "input"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [[1], [1.5]]}, "input[1]"),
        ({"input": "\ud800"}, "input"),
        ({"input": [10**9]}, "input[0]"),
        ({"input": [[CLS], [-1]]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a b " * 60}, "input[0]"),
        ({"input": ["a", "x" * 60_000]}, "input[1]"),
        ({"input": "a", "dimensions": 16}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "encoding_format": ""}, "encoding_format"),
        ({"input": "a", "user": "me"}, "user"),
        ({"input": "a", "mood": 1}, "mood"),
        ({"input": "a", "model": None}, "model"),
    ],
)
def test_a_refusal_names_the_field(server: ServerProcess, change: dict[str, Any], param: str) -> None:
    answer = ask(server, _PATH, {"model": MODEL_NAME} | change)
    assert (answer.status, answer.document["error"]["param"]) == (400, param)


def test_the_longest_text_and_one_more(client: OpenAI) -> None:
    assert client.embeddings.create(model=MODEL_NAME, input=[5] * 120).usage.total_tokens == 120
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL_NAME, input=[5] * 121)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input[0]")


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_a_pass_of_any_length(llama_host: Path, tmp_path: Path, kind: str) -> None:
    # Not a multiple of the texts of a pass; and a text needs no room for an answer.
    settings = {**_SETTINGS, "engine.context_tokens": 100, "server.limits.prompt_tokens": 100}
    model = write_tiny_gguf(tmp_path / "m.gguf", pooling=PoolingType.MEAN) if kind == "mean" else None
    with running_server(llama_host, tmp_path, model or _write(tmp_path, kind), settings) as server:
        for count, status in ((100, 200), (101, 400)):
            answer = ask(server, _PATH, {"model": MODEL_NAME, "input": [5] * count})
            assert answer.status == status, answer.document


def test_a_model_that_embeds_generates_nothing(server: ServerProcess) -> None:
    assert "chat-template" not in server.log
    chat = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "hi"}]}
    for path, body in ((COMPLETION, {"model": MODEL_NAME, "prompt": "a"}), ("/v1/chat/completions", chat)):
        answer = ask(server, path, body)
        assert (answer.status, answer.code, answer.document["error"]["param"]) == (
            400,
            "no_generation",
            "model",
        )


def test_a_model_that_generates_embeds_nothing(scripted_server: ServerProcess) -> None:
    answer = ask(scripted_server, _PATH, {"model": MODEL_NAME, "input": "a"})
    assert (answer.status, answer.code, answer.document["error"]["param"]) == (400, "no_embeddings", "model")
    assert ask(scripted_server, _PATH, {"model": "other", "input": "a"}).status == 404


def test_accounts(llama_host: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    settings = {
        **_SETTINGS,
        "server.state_dir": str(tmp_path / "state"),
        "server.audit": {"enabled": True, "prompts": True, "checkpoint_lines": 1},
    }
    with running_server(llama_host, tmp_path, _write(tmp_path, "mean"), settings) as server:
        before = scrape(server).samples[_COMPUTED]
        assert ask(server, _PATH, {"model": MODEL_NAME, "input": ["a", [CLS, 5, SEP]]}).status == 200
        assert scrape(server).samples[_COMPUTED] - before == 6
        server.wait_for(r"request .*path=/v1/embeddings.* outcome=stop .*prompt_tokens=6")
        assert server.terminate() == 0
    lines = [
        json.loads(line)
        for file in (tmp_path / "state").rglob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    (line,) = [line for line in lines if line["kind"] == "request"]
    assert (line["prompt"], line["prompt_tokens"], line["outcome"]) == (["a", [CLS, 5, SEP]], 6, "stop")


def test_a_client_that_leaves_and_a_deadline(llama_host: Path, tmp_path: Path) -> None:
    model = write_tiny_gguf(
        tmp_path / "slow.gguf", dim=512, ff=2048, layers=6, pooling=PoolingType.LAST, context_tokens=512
    )
    settings = {**_SETTINGS, "server.limits.request_s": 4, "server.limits.queue": 0, "engine.slots": 1}
    body = {"model": MODEL_NAME, "input": [[BOS] * 120] * 2000, "encoding_format": "base64"}
    settings["server.limits.body_bytes"] = 1 << 21
    with running_server(llama_host, tmp_path, model, settings) as server:
        answer = ask(server, _PATH, body)
        assert (answer.status, answer.code) == (504, "deadline_exceeded")
        server.wait_for("outcome=deadline")
        assert ask(server, _PATH, {"model": MODEL_NAME, "input": "a"}).status == 200
        connection = connect(server)
        connection.request("POST", _PATH, json.dumps(body), {"Content-Type": "application/json"})
        time.sleep(0.3)
        connection.close()
        server.wait_for("outcome=client_gone")
        assert ask(server, _PATH, {"model": MODEL_NAME, "input": "a"}).status == 200


@pytest.mark.parametrize(
    ("pooling", "what"), [(None, "neither generates text nor embeds"), (PoolingType.RANK, "ranks texts")]
)
def test_models_that_do_neither(
    llama_host: Path, tmp_path: Path, pooling: PoolingType | None, what: str
) -> None:
    model = write_tiny_bert(tmp_path / "other.gguf", pooling=pooling)
    with running_server(llama_host, tmp_path, model, _SETTINGS, wait_ready=False) as server:
        server.wait_for(what)
        assert server.wait() == 4


def test_bench_says_that_it_measures_generating(llama_host: Path, tmp_path: Path) -> None:
    runtime = write_runtime(tmp_path, _write(tmp_path, "mean"), _SETTINGS)
    done = run_edgeserve(server_environment(llama_host, runtime), "bench", "--prompt", "32", "--output", "16")
    assert done.returncode == 2
    assert "embeds texts" in done.stderr


def test_the_engine_by_itself(llama_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(llama_host))
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(llama_host / "llama_cpp" / "lib"))
    settings = EngineSettings(context_tokens=64, threads=1, slots=2)
    engine = open_llama((str(_write(tmp_path, "mean")),), settings, Log())
    try:
        assert isinstance(engine, EmbeddingEngine)
        assert (engine.facts.text_prefix, engine.facts.text_suffix) == ((CLS,), (SEP,))
        assert (engine.facts.vector_length, engine.facts.context_tokens) == (DIM, 64)
        prompt = (CLS, 5, SEP)
        engine.submit(EmbeddingRequest(id="long", prompts=(prompt,) * 40))
        engine.submit(EmbeddingRequest(id="short", prompts=(prompt,)))
        for wrong, what in ((EmbeddingRequest(id="x", prompts=(prompt,)), "slot"),
                            (Request(id="x", prompt=prompt, output_tokens=1, sampling=Sampling()), "generates")):  # fmt: skip
            with pytest.raises(EngineError, match=what):
                engine.submit(wrong)
        first = engine.step()
        assert next(event for event in first if isinstance(event, Finish)).request_id == "short"
        assert engine.cancel("long") is not None
        assert engine.step() == ()
        for prompts in ((), ((),), ((5,) * 65,)):
            with pytest.raises(EngineError, match="fit"):
                engine.submit(EmbeddingRequest(id="y", prompts=prompts))
        engine.submit(EmbeddingRequest(id="full", prompts=((5,) * 64,)))
        vector, finish = engine.step()
        assert isinstance(vector, Vector)
        assert isinstance(finish, Finish)
        assert (finish.reason, finish.prompt_tokens) == (FinishReason.STOP, 64)
        assert ctypes.sizeof(ctypes.c_float) * DIM == len(vector.values)
        assert engine.stats().busy_slots == 0
    finally:
        engine.close()

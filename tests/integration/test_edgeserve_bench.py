"""`edgeserve bench` and traces, with the real engine."""

import http.client
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from edgeserve import exits
from tests.support.chrome_trace import read_trace
from tests.support.llama import (
    MODEL_NAME,
    run_edgeserve,
    running_server,
    server_environment,
    write_runtime,
)

_SHORT = ("--prompt", "40", "--output", "8", "--repetitions", "2")


def test_figures_of_a_real_run(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    environment = server_environment(llama_host, write_runtime(tmp_path, tiny_model))
    done = run_edgeserve(environment, "bench", *_SHORT, "--concurrency", "2", "--json")
    assert done.returncode == exits.OK, done.stderr
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert document["load"] == {"prompt_tokens": 40, "output_tokens": 8, "concurrency": 2, "repetitions": 2}
    assert document["engine"]["slots"] == 2
    assert document["engine"]["cpu_variant"]
    assert document["is_traced"] is False
    figures = document["figures"]
    for name in ("first_token_s", "prompt_tokens_per_s", "generation_tokens_per_s", "total_tokens_per_s"):
        assert 0 < figures[name]["least"] <= figures[name]["median"] <= figures[name]["greatest"]
    assert 0 < figures["anonymous_memory_bytes"] < figures["peak_memory_bytes"]


def test_every_token_asked_for_is_generated(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    """The scripted model ends most answers at once; a bench goes on, and its trace counts."""
    trace = tmp_path / "trace.json"
    environment = server_environment(llama_host, write_runtime(tmp_path, scripted_model))
    done = run_edgeserve(environment, "bench", *_SHORT, "--trace", str(trace), "--json")
    assert done.returncode == exits.OK, done.stderr
    assert json.loads(done.stdout)["is_traced"] is True
    answers = [event["args"] for event in read_trace(trace) if event["name"] == "answer"]
    bench = [answer for answer in answers if answer["id"] != "warm-up"]
    assert [answer["output_tokens"] for answer in bench] == [8, 8, 8]
    assert {answer["prompt_tokens"] for answer in bench} == {40}
    assert all(answer["cached_tokens"] <= 1 for answer in bench)


def test_a_table_for_people(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    environment = server_environment(llama_host, write_runtime(tmp_path, tiny_model))
    done = run_edgeserve(environment, "bench", *_SHORT)
    assert done.returncode == exits.OK, done.stderr
    assert "1 at a time, 40 + 8 tokens, 2 times" in done.stdout
    assert "tokens/s" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("--prompt", "0"), exits.USAGE, "--prompt must be at least 1, not 0"),
        (("--output", "1"), exits.USAGE, "--output must be at least 2, not 1"),
        (("--concurrency", "3"), exits.USAGE, "need as many slots, there are 2; give --slots"),
        (("--prompt", "1000", "--output", "100"), exits.USAGE, "do not fit 1024 of context"),
        (("--repetitions", "x"), exits.USAGE, "invalid int value"),
        (("--model-files", "/gone.gguf"), exits.MODEL_FILE, "/gone.gguf: No such file"),
        (("--trace", "/gone/trace.json"), exits.PATHS, "/gone/trace.json cannot be written"),
        (("--slots", "0"), exits.CONFIG, "must be from 1 to 64"),
    ],
)
def test_what_cannot_be_measured(
    llama_host: Path, tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, problem: str
) -> None:
    environment = server_environment(llama_host, write_runtime(tmp_path, tiny_model))
    done = run_edgeserve(environment, "bench", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_does_not_load(llama_host: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    environment = server_environment(llama_host, write_runtime(tmp_path, tmp_path / "bad.gguf"))
    done = run_edgeserve(environment, "bench")
    assert done.returncode == exits.ENGINE
    assert "bad.gguf: the model does not load" in done.stderr


def _complete(port: int, prompt: str, max_tokens: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    document: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return document


def test_a_trace_of_a_server(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    with running_server(
        llama_host, tmp_path, scripted_model, environment={"EDGE_TRACE": str(trace)}
    ) as server:
        read_trace(trace)
        asking = [
            threading.Thread(target=_complete, args=(server.port, prompt, 200))
            for prompt in ("loop", "loop", "go")
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        # A client that goes away in the middle.
        gone = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        body = {"model": MODEL_NAME, "prompt": "loop", "max_tokens": 400, "stream": True}
        gone.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        gone.getresponse().read(100)
        gone.close()
        server.wait_for("outcome=client_gone")
        assert server.terminate() == 0
    events = read_trace(trace)
    spans = [event for event in events if event["ph"] == "X"]
    passes = [event for event in spans if event["tid"] == 0]
    answers = [event["args"] for event in spans if event["name"] == "answer"]
    assert {event["tid"] for event in spans} == {0, 1, 2}
    assert sorted(answer["output_tokens"] for answer in answers if answer["reason"] == "length")[-2:] == [
        200,
        200,
    ]
    assert "cancelled" in {answer["reason"] for answer in answers}
    assert sum(one["args"]["output_tokens"] for one in passes) >= 400
    assert any(one["args"]["requests"] == 2 for one in passes)
    assert [event for event in events if event["ph"] == "C"]


def test_without_a_trace_nothing_stands_around_the_engine(
    llama_host: Path, tiny_model: Path, tmp_path: Path
) -> None:
    program = (
        "import os, sys\n"
        "from edgeserve.config import load_config\n"
        "from edgeserve.loading import load_engine\n"
        "from edgeserve.log import Log\n"
        "engine = load_engine(load_config(os.environ, {}), Log())\n"
        "print(type(engine).__name__, 'edgeserve.trace' in sys.modules)\n"
        "engine.close()\n"
    )
    import subprocess
    import sys

    environment = server_environment(llama_host, write_runtime(tmp_path, tiny_model))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "LlamaEngine False\n"

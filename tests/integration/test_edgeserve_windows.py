"""Prompts that are too long, answered in windows by a real edgeserve process."""

import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeserve.engine.opening import open_llama
from edgeserve.log import Log
from edgeserve.settings import EngineSettings
from edgeserve.windows import split_text
from tests.support.llama import MODEL_NAME, ServerProcess, running_server

_CONTEXT = 256
_WINDOW: dict[str, Any] = {
    "engine.context_tokens": _CONTEXT,
    "server.limits.prompt_tokens": 200,
    "server.limits.output_tokens": 200,
    "server.limits.over_long": "window",
    "server.limits.windows": 12,
}
_LONG = "".join(f"line {number} the left right at the\n" for number in range(40))
# The scripted model has a token for nearly every character.
_SOME = "".join(f"line {number} the left right at the\n" for number in range(20))


def _ask(server: ServerProcess, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    data = json.dumps({"model": MODEL_NAME, "temperature": 0} | dict(body))
    connection.request("POST", path, data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if response.getheader("content-type", "").startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in text.decode().split("\n\n") if line]
        assert events.pop() == "[DONE]"
        return response.status, [json.loads(event) for event in events]
    return response.status, json.loads(text)


def _complete(server: ServerProcess, prompt: str, **more: Any) -> Any:
    status, document = _ask(server, "/v1/completions", {"prompt": prompt, **more})
    assert status == 200, document
    return document


def _chat(server: ServerProcess, text: str, **more: Any) -> tuple[int, Any]:
    messages = [{"role": "system", "content": "Extract."}, {"role": "user", "content": text}]
    return _ask(server, "/v1/chat/completions", {"messages": messages, **more})


@pytest.fixture(scope="module")
def apart(
    llama_host: Path, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server whose windows of 100 tokens do not overlap."""
    overrides = _WINDOW | {"server.limits.window_tokens": 100, "server.limits.window_stride_tokens": 100}
    folder = tmp_path_factory.mktemp("apart")
    with running_server(llama_host, folder, scripted_model, overrides) as server:
        yield server


@pytest.fixture(scope="module")
def overlapping(
    llama_host: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    overrides = _WINDOW | {"server.limits.window_tokens": 120, "server.limits.window_stride_tokens": 80}
    with running_server(llama_host, tmp_path_factory.mktemp("over"), tiny_model, overrides) as server:
        yield server


def test_every_window_of_a_chat_is_answered(apart: ServerProcess) -> None:
    status, document = _chat(apart, _SOME)
    assert status == 200, document
    lines = document["choices"][0]["message"]["content"].split("\n")
    assert 5 < len(lines) <= 12
    assert set(lines) == {"I am fine."}
    assert document["choices"][0]["finish_reason"] == "stop"
    usage = document["usage"]
    # "I am fine." and the end of the answer have five tokens, the rest of the prompt and each window more than 100.
    assert usage["completion_tokens"] == 5 * len(lines)
    assert usage["prompt_tokens"] > 60 * len(lines)
    # The system's message and the template's beginning are computed once.
    assert usage["prompt_tokens_details"]["cached_tokens"] > 10 * (len(lines) - 1)


def test_a_stream_says_the_same(apart: ServerProcess) -> None:
    whole = _chat(apart, _SOME)[1]
    status, events = _chat(apart, _SOME, stream=True, stream_options={"include_usage": True})
    assert status == 200
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]
    assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1] == "stop"
    for key in ("prompt_tokens", "completion_tokens"):
        assert events[-1]["usage"][key] == whole["usage"][key]


def test_a_prompt_that_fits_is_not_cut(apart: ServerProcess) -> None:
    status, document = _chat(apart, "short")
    assert (status, document["choices"][0]["message"]["content"]) == (200, "I am fine.")


def test_windows_are_those_of_the_text(
    overlapping: ServerProcess, llama_host: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is what the windows get that we cut ourselves and ask for one by one."""
    monkeypatch.syspath_prepend(str(llama_host))
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(llama_host / "llama_cpp" / "lib"))
    engine = open_llama((str(tiny_model),), EngineSettings(context_tokens=64, threads=1), Log())
    windows = split_text(
        _LONG,
        count_tokens=lambda piece: len(engine.tokenize(piece, special=False)),
        window_tokens=120,
        stride_tokens=80,
        most=12,
    )
    engine.close()
    assert len(windows) > 4
    alone = [_complete(overlapping, window, max_tokens=6) for window in windows]
    together = _complete(overlapping, _LONG, max_tokens=6 * len(windows))
    texts = [document["choices"][0]["text"] for document in alone]
    assert len(set(texts)) > 2
    assert together["choices"][0]["text"].split("\n")[0] == texts[0].split("\n")[0]
    for text in texts:
        assert all(line in together["choices"][0]["text"] for line in text.split("\n"))
    for key in ("prompt_tokens", "completion_tokens"):
        assert together["usage"][key] == sum(document["usage"][key] for document in alone)
    assert together["choices"][0]["finish_reason"] == "length"


def test_max_tokens_holds_for_all_windows_together(apart: ServerProcess) -> None:
    status, document = _chat(apart, _SOME, max_tokens=14)
    assert status == 200
    assert document["usage"]["completion_tokens"] <= 14
    assert document["choices"][0]["finish_reason"] == "length"
    status, document = _chat(apart, _SOME, max_tokens=3)
    assert (status, document["error"]["param"], document["error"]["code"]) == (
        400,
        "max_tokens",
        "out_of_range",
    )


def test_what_even_windows_do_not_hold_is_refused(apart: ServerProcess) -> None:
    for text in (_LONG, _LONG * 30):
        status, document = _chat(apart, text)
        assert (status, document["error"]["code"]) == (400, "context_length_exceeded")
    status, document = _ask(
        apart,
        "/v1/chat/completions",
        {"messages": [{"role": "system", "content": _LONG}, {"role": "user", "content": "x"}]},
    )
    assert (status, document["error"]["code"]) == (400, "context_length_exceeded")
    status, document = _ask(apart, "/v1/completions", {"prompt": [10] * 400})
    assert (status, document["error"]["code"]) == (400, "context_length_exceeded")


def test_windows_have_one_deadline_and_end_with_the_client(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    overrides = _WINDOW | {
        "engine.context_tokens": 65536,
        "engine.slots": 1,
        "server.limits.queue": 0,
        "server.limits.output_tokens": 60000,
        "server.limits.window_tokens": 100,
        "server.limits.request_s": 2,
    }
    with running_server(llama_host, tmp_path, scripted_model, overrides) as server:
        # After the last word of the last window the model never ends.
        body = {"prompt": " ".join(["loop"] * 150), "max_tokens": 60000}
        status, document = _ask(server, "/v1/completions", body)
        assert (status, document["error"]["code"]) == (504, "deadline_exceeded")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        data = json.dumps({"model": MODEL_NAME, "temperature": 0, "stream": True, **body})
        connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
        connection.getresponse().readline()
        connection.close()
        server.wait_for("outcome=client_gone")
        assert _complete(server, "go")["choices"][0]["text"].startswith("Hello")


def test_by_default_a_long_prompt_is_refused(scripted_server: ServerProcess) -> None:
    status, document = _ask(scripted_server, "/v1/completions", {"prompt": "the left right at " * 300})
    assert (status, document["error"]["code"]) == (400, "context_length_exceeded")


def test_what_cannot_be_put_together_is_refused(apart: ServerProcess) -> None:
    status, document = _ask(apart, "/v1/completions", {"prompt": _SOME, "logprobs": 1})
    assert (status, document["error"]["code"]) == (400, "context_length_exceeded")
    assert "log probabilities" in document["error"]["message"]

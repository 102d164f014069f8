"""Several answers to one prompt (`n`), by the official `openai` client."""

from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.asking import COMPLETION, GO, LOOP, ask
from tests.support.llama import MODEL_NAME, running_server
from tests.support.openai_client import openai_client
from tests.support.scraping import scrape

_ASK: Any = [{"role": "user", "content": "hello"}]
_COMPUTED = 'edgeserve_prompt_tokens_total{source="computed"}'


def test_chats(scripted: OpenAI) -> None:
    answer = scripted.chat.completions.create(model=MODEL_NAME, messages=_ASK, temperature=0, n=5)
    assert [choice.index for choice in answer.choices] == list(range(5))
    assert {(choice.message.content, choice.finish_reason) for choice in answer.choices} == {
        ("I am fine.", "stop")
    }
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 25
    alone = scripted.chat.completions.create(model=MODEL_NAME, messages=_ASK, temperature=0, n=1)
    assert alone.usage is not None
    assert alone.usage.prompt_tokens == answer.usage.prompt_tokens


def test_each_has_a_seed_of_its_own(tiny: OpenAI) -> None:
    given: Any = {"model": MODEL_NAME, "prompt": "the left", "temperature": 1.3, "max_tokens": 20}
    answer = tiny.completions.create(**given, seed=7, n=3)
    texts = [choice.text for choice in answer.choices]
    assert texts == [tiny.completions.create(**given, seed=7 + number).choices[0].text for number in range(3)]
    assert len(set(texts)) == 3


def test_a_stream(scripted: OpenAI) -> None:
    chunks = list(
        scripted.chat.completions.create(
            model=MODEL_NAME,
            messages=_ASK,
            temperature=0,
            n=3,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    for number in range(3):
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == number]
        assert "".join(part.delta.content or "" for part in parts) == "I am fine."
        assert parts[0].delta.role == "assistant"
        assert [part.finish_reason for part in parts if part.finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 15


def test_a_stream_of_completions_with_log_probabilities(scripted: OpenAI) -> None:
    chunks = list(
        scripted.completions.create(
            model=MODEL_NAME, prompt="go", temperature=0, n=2, stream=True, logprobs=1
        )
    )
    for number in range(2):
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == number]
        offsets = [offset for part in parts if part.logprobs for offset in part.logprobs.text_offset or []]
        assert "".join(part.text for part in parts) == "Hello world€ END of story"
        assert offsets == sorted(offsets)
        assert offsets[0] == 0


def test_the_prompt_is_computed_once(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, tiny_model, {"engine.slots": 3}) as server:
        before = scrape(server).samples[_COMPUTED]
        body = {"model": MODEL_NAME, "prompt": [1] + [262] * 199, "max_tokens": 4, "n": 3}
        answer = ask(server, COMPLETION, body)
        assert answer.status == 200
        assert answer.document["usage"]["prompt_tokens"] == 200
        assert (
            scrape(server).samples[_COMPUTED] - before == 201
        )  # all but the first, known from the start; the last of each is what it goes on from


def test_more_than_ever_fit(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    limits = {"server.limits.queue": 4, "server.limits.client_requests": 3}
    with (
        running_server(llama_host, tmp_path, scripted_model, limits) as server,
        openai_client(server) as client,
    ):
        for count, what in ((4, "at most 3"), (17, "from 1 to 16"), (0, "from 1 to 16")):
            with pytest.raises(openai.BadRequestError, match=what) as caught:
                client.completions.create(model=MODEL_NAME, prompt="go", n=count)
            assert caught.value.param == "n"
        with client.completions.create(
            model=MODEL_NAME, prompt="loop", n=2, max_tokens=500, stream=True
        ) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as limited:
                client.completions.create(model=MODEL_NAME, prompt="go", n=2)
            assert limited.value.code == "client_limit"
        server.wait_for("outcome=client_gone")
        assert client.completions.create(model=MODEL_NAME, prompt="go", n=3, temperature=0).choices[2].text


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_frees_all_places(
    llama_host: Path, scripted_model: Path, tmp_path: Path, is_stream: bool
) -> None:
    limits = {
        "server.limits.queue": 0,
        "engine.slots": 3,
        "engine.context_tokens": 8192,
        "server.limits.output_tokens": 8000,
    }
    with (
        running_server(llama_host, tmp_path, scripted_model, limits) as server,
        openai_client(server) as client,
    ):
        if is_stream:
            with client.completions.create(**LOOP, n=3, max_tokens=8000, stream=True) as stream:
                next(iter(stream))
        else:
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(**LOOP, n=3, max_tokens=8000, timeout=0.3)
        server.wait_for("outcome=client_gone")
        assert ask(server, COMPLETION, {**GO, "n": 3}).status == 200


def test_a_deadline_ends_all(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    limits = {
        "server.limits.request_s": 3, "engine.context_tokens": 65536, "server.limits.output_tokens": 60000,
        "server.limits.queue": 0,
    }  # fmt: skip
    with running_server(llama_host, tmp_path, scripted_model, limits) as server:
        answer = ask(server, COMPLETION, {**LOOP, "n": 2, "max_tokens": 60000})
        assert (answer.status, answer.code) == (504, "deadline_exceeded")
        assert ask(server, COMPLETION, {**GO, "n": 2}).status == 200


def test_a_prompt_in_windows_has_one_answer(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, tiny_model, {"server.limits.over_long": "window"}) as server:
        answer = ask(
            server, COMPLETION, {"model": MODEL_NAME, "prompt": "left right " * 300, "max_tokens": 32, "n": 2}
        )
        assert (answer.status, answer.code) == (400, "context_length_exceeded")

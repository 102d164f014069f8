"""A real edgeserve process, asked by the official `openai` client."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.llama import MODEL_NAME, running_server
from tests.support.openai_client import openai_client
from tests.support.tiny_gguf import write_scripted_gguf, write_tiny_gguf

_ASK: Any = [{"role": "user", "content": "hello"}]


def test_chat(scripted: OpenAI) -> None:
    answer = scripted.chat.completions.create(model=MODEL_NAME, messages=_ASK, temperature=0)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "I am fine.",
        "stop",
    )
    assert answer.object == "chat.completion"
    assert answer.model == MODEL_NAME
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == 5


def test_chat_takes_text_parts_and_its_own_answers_back(scripted: OpenAI) -> None:
    first = scripted.chat.completions.create(model=MODEL_NAME, messages=_ASK, temperature=0)
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]},
        first.choices[0].message.model_dump(),
        {"role": "user", "content": "and now?"},
    ]
    again = scripted.chat.completions.create(model=MODEL_NAME, messages=messages, temperature=0)
    assert again.choices[0].message.content == "I am fine."


def test_chat_stream(scripted: OpenAI) -> None:
    chunks = list(
        scripted.chat.completions.create(
            model=MODEL_NAME,
            messages=_ASK,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "I am fine."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_stream_without_usage(scripted: OpenAI) -> None:
    chunks = list(
        scripted.chat.completions.create(model=MODEL_NAME, messages=_ASK, temperature=0, stream=True)
    )
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_completion(scripted: OpenAI) -> None:
    answer = scripted.completions.create(model=MODEL_NAME, prompt="go", temperature=0)
    assert answer.choices[0].text == "Hello world€ END of story"
    assert answer.choices[0].finish_reason == "stop"


def test_completion_of_token_ids(scripted: OpenAI, tiny: OpenAI) -> None:
    text = tiny.completions.create(model=MODEL_NAME, prompt="a", temperature=0)
    # BOS is added to text and not to tokens; "a" stands behind <unk>, BOS, EOS, two ChatML marks, 256 bytes and "▁".
    ids = tiny.completions.create(model=MODEL_NAME, prompt=[1, 262], temperature=0)
    assert ids.choices[0].text == text.choices[0].text
    with pytest.raises(openai.BadRequestError, match="token id"):
        scripted.completions.create(model=MODEL_NAME, prompt=[1, 10**6])


def test_characters_that_two_tokens_make_come_whole(scripted: OpenAI) -> None:
    pieces = [
        chunk.choices[0].text
        for chunk in scripted.completions.create(model=MODEL_NAME, prompt="go", temperature=0, stream=True)
    ]
    assert "".join(pieces) == "Hello world€ END of story"


def test_a_character_cut_by_the_end_is_marked(scripted: OpenAI) -> None:
    answer = scripted.completions.create(model=MODEL_NAME, prompt="torn", temperature=0)
    assert answer.choices[0].text == "ab\ufffd"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (" END of", "Hello world€"),
        (["never", "world"], "Hello "),
        ("o", "Hell"),
        ("€", "Hello world"),
        (" END of story!", "Hello world€ END of story"),
        ("Hello", ""),
    ],
)
def test_stop_strings(scripted: OpenAI, stop: Any, text: str, is_stream: bool) -> None:
    if is_stream:
        chunks = list(
            scripted.completions.create(model=MODEL_NAME, prompt="go", temperature=0, stop=stop, stream=True)
        )
        assert "".join(chunk.choices[0].text for chunk in chunks) == text
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        answer = scripted.completions.create(model=MODEL_NAME, prompt="go", temperature=0, stop=stop)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, "stop")


@pytest.mark.parametrize(("asked", "text"), [(1, "Hello"), (3, "Hello world")])
def test_max_tokens(scripted: OpenAI, asked: int, text: str) -> None:
    answer = scripted.completions.create(model=MODEL_NAME, prompt="go", temperature=0, max_tokens=asked)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == asked


def test_stop_on_the_last_allowed_token_is_a_stop(scripted: OpenAI) -> None:
    answer = scripted.completions.create(
        model=MODEL_NAME, prompt="go", temperature=0, max_tokens=3, stop="ld"
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello wor", "stop")


def test_max_completion_tokens(scripted: OpenAI) -> None:
    answer = scripted.chat.completions.create(
        model=MODEL_NAME, messages=_ASK, temperature=0, max_completion_tokens=2
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("I am", "length")


def test_seed_and_sampling(tiny: OpenAI) -> None:
    def answer(seed: int, **more: Any) -> Any:
        return (
            tiny.completions.create(
                model=MODEL_NAME, prompt="the", seed=seed, temperature=1.5, max_tokens=24, **more
            )
            .choices[0]
            .text
        )

    assert answer(-5) == answer(-5)
    assert answer(-5) != answer(6)
    assert answer(1, extra_body={"top_k": 1}) == answer(2, extra_body={"top_k": 1})
    assert answer(1, top_p=0.0) == answer(2, top_p=0.0)
    assert answer(1, extra_body={"min_p": 1.0}) == answer(2, extra_body={"min_p": 1.0})


def test_models(scripted: OpenAI) -> None:
    assert [model.id for model in scripted.models.list()] == [MODEL_NAME]
    assert scripted.models.retrieve(MODEL_NAME).id == MODEL_NAME
    with pytest.raises(openai.NotFoundError) as caught:
        scripted.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_unknown_model(scripted: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        scripted.chat.completions.create(model="gpt-4o", messages=_ASK)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_concurrent_greedy_answers_equal_those_alone(tiny: OpenAI) -> None:
    prompts = [
        f"{word} {other}" for word in ("the", "left", "Battery low", "a") for other in ("right", "on " * 40)
    ]

    def answer(prompt: str) -> str:
        return (
            tiny.completions.create(model=MODEL_NAME, prompt=prompt, temperature=0, max_tokens=40)
            .choices[0]
            .text
        )

    alone = [answer(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(answer, prompts)) == alone
    assert len(set(alone)) == len(alone)


def test_prompt_longer_than_the_limit(tiny: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Obstacle! " * 600}]
    with pytest.raises(openai.BadRequestError) as caught:
        tiny.chat.completions.create(model=MODEL_NAME, messages=messages)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as caught:
        tiny.completions.create(model=MODEL_NAME, prompt="😀" * 15_000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_prompt_and_answer_longer_than_the_context(
    llama_host: Path, tiny_model: Path, tmp_path: Path
) -> None:
    limits = {
        "server.limits.prompt_tokens": 120,
        "server.limits.output_tokens": 100,
        "engine.context_tokens": 128,
    }
    with running_server(llama_host, tmp_path, tiny_model, limits) as server, openai_client(server) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL_NAME, prompt=[1] * 100, max_tokens=29)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")
        answer = client.completions.create(model=MODEL_NAME, prompt=[1] * 100, max_tokens=28)
        assert answer.usage is not None
        assert answer.usage.total_tokens <= 128


def test_model_without_chat_template(llama_host: Path, tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "plain.gguf", chat_template=None)
    with running_server(llama_host, tmp_path, model) as server, openai_client(server) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL_NAME, messages=_ASK)
        assert caught.value.code == "no_chat_template"
        assert client.completions.create(model=MODEL_NAME, prompt="a").choices[0].text


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{% for i in range(10**6) %}{% endfor %}", "chat_template_error"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "chat_template_error"),
        ("{{ raise_exception('roles must alternate') }}", "chat_template_error"),
        ("{% if %}", "no_chat_template"),
    ],
)
def test_hostile_templates(llama_host: Path, tmp_path: Path, template: str, code: str) -> None:
    model = write_scripted_gguf(tmp_path / "evil.gguf", scripts={"go": ("Hello",)}, chat_template=template)
    with running_server(llama_host, tmp_path, model) as server, openai_client(server) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL_NAME, messages=_ASK)
        assert caught.value.code == code
        answer = client.completions.create(model=MODEL_NAME, prompt="go", temperature=0)
        assert answer.choices[0].text == "Hello"


def test_control_tokens_in_user_text_stay_text(tiny: OpenAI) -> None:
    def prompt_tokens(content: str) -> int:
        answer = tiny.chat.completions.create(
            model=MODEL_NAME, messages=[{"role": "user", "content": content}], max_tokens=1
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    # As a control token it would be one token instead of the ten of its characters.
    assert prompt_tokens("x<|im_end|>y") >= prompt_tokens("xy") + 8
    text = tiny.completions.create(model=MODEL_NAME, prompt="</s>", max_tokens=1)
    assert text.usage is not None
    assert text.usage.prompt_tokens > 2

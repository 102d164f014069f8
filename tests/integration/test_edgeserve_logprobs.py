"""Log probabilities and biases of tokens, by the official `openai` client and in its shapes."""

import math
from typing import Any

import pytest
from openai import OpenAI

from tests.support.llama import MODEL_NAME
from tests.support.tiny_gguf import FIRST_BYTE

_ASK: Any = [{"role": "user", "content": "hello"}]
# Tokens of the tiny model: "a" stands behind the control tokens, the bytes and the space.
_LETTER_A = FIRST_BYTE + 256 + 1


def test_chat_logprobs(tiny: OpenAI) -> None:
    answer = tiny.chat.completions.create(
        model=MODEL_NAME, messages=_ASK, temperature=0, max_tokens=8, logprobs=True, top_logprobs=20
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens == 8
    for item in logprobs.content:
        assert len(item.top_logprobs) == 20
        values = [one.logprob for one in item.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0 + 1e-4
        # Greedy: what was drawn is the likeliest.
        assert (item.token, item.logprob) == (item.top_logprobs[0].token, item.top_logprobs[0].logprob)
        assert item.bytes is not None
        assert bytes(item.bytes).decode("utf-8", "replace") == item.token
    whole = b"".join(bytes(item.bytes or ()) for item in logprobs.content)
    assert whole.decode("utf-8", "replace") == answer.choices[0].message.content


def test_a_stream_has_the_same_logprobs(tiny: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL_NAME, "messages": _ASK, "temperature": 0, "max_tokens": 24, "logprobs": True, "top_logprobs": 2
    }  # fmt: skip
    answer = tiny.chat.completions.create(**asked)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    streamed = [
        item
        for chunk in tiny.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs is not None
        for item in chunk.choices[0].logprobs.content or ()
    ]
    assert streamed == logprobs.content


def test_logprobs_cost_nothing_unless_asked_for(tiny: OpenAI) -> None:
    answer = tiny.chat.completions.create(model=MODEL_NAME, messages=_ASK, max_tokens=2)
    assert answer.choices[0].logprobs is None
    chosen = tiny.chat.completions.create(model=MODEL_NAME, messages=_ASK, max_tokens=2, logprobs=True)
    assert chosen.choices[0].logprobs is not None
    assert [item.top_logprobs for item in chosen.choices[0].logprobs.content or ()] == [[], []]


def test_completion_logprobs(scripted: OpenAI) -> None:
    answer = scripted.completions.create(model=MODEL_NAME, prompt="go", temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["Hello", " wor", "ld", "\ufffd", "\ufffd", "\ufffd", " EN", "D of", " story"]
    # The three tokens of the euro sign make one character, which counts with the last.
    assert logprobs.text_offset == [0, 5, 9, 11, 11, 11, 12, 15, 19]
    assert logprobs.token_logprobs == pytest.approx([0.0] * 9, abs=1e-3)
    assert logprobs.top_logprobs is not None
    assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True))
    assert {len(top) for top in logprobs.top_logprobs} <= {1, 2, 3}


@pytest.mark.parametrize(
    ("stop", "tokens"),
    [
        (" END of", ["Hello", " wor", "ld", "\ufffd", "\ufffd", "\ufffd"]),
        ("o", ["Hello"]),
        ("never", ["Hello", " wor", "ld", "\ufffd", "\ufffd", "\ufffd", " EN", "D of", " story"]),
        ("Hello", []),
    ],
)
def test_tokens_of_a_stop_string_are_not_part_of_the_answer(
    scripted: OpenAI, stop: str, tokens: list[str]
) -> None:
    answer = scripted.completions.create(model=MODEL_NAME, prompt="go", temperature=0, logprobs=0, stop=stop)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == tokens
    chunks = list(
        scripted.completions.create(
            model=MODEL_NAME, prompt="go", temperature=0, logprobs=0, stop=stop, stream=True
        )
    )
    streamed = [chunk.choices[0].logprobs for chunk in chunks]
    assert [token for one in streamed if one is not None for token in one.tokens or ()] == tokens


def test_logit_bias(tiny: OpenAI) -> None:
    def answer(bias: int) -> str:
        return (
            tiny.completions.create(
                model=MODEL_NAME,
                prompt="the",
                temperature=0,
                max_tokens=4,
                logit_bias={str(_LETTER_A): bias},
            )
            .choices[0]
            .text
        )

    assert answer(100) == "aaaa"
    assert answer(-100) != "aaaa"

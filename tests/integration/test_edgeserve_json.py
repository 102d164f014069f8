"""Answers in JSON, by the official `openai` client: any object, or valid against a schema, whatever the model would say."""

import json
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from tests.support.llama import MODEL_NAME

_ASK: Any = [{"role": "user", "content": "hello"}]


class _Reading(BaseModel):
    sensor: Literal["altitude", "battery"]
    value: float
    is_low: bool


class _Alert(BaseModel):
    level: Literal["info", "warning", "danger"]
    readings: list[_Reading] = Field(max_length=2)
    note: str | None = Field(pattern=r"^[A-Z][a-z]{0,9}\\.$")


@pytest.mark.parametrize("seed", range(8))
def test_a_schema_is_followed_by_a_model_that_talks_nonsense(tiny: OpenAI, seed: int) -> None:
    answer = tiny.chat.completions.parse(
        model=MODEL_NAME, messages=_ASK, response_format=_Alert, seed=seed, temperature=1.2, max_tokens=500
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.parsed is not None


def test_a_schema_in_a_stream(tiny: OpenAI) -> None:
    with tiny.chat.completions.stream(
        model=MODEL_NAME, messages=_ASK, response_format=_Alert, seed=3, max_tokens=500
    ) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert answer.choices[0].message.parsed is not None


def test_a_schema_with_everything_else(tiny: OpenAI) -> None:
    answer = tiny.chat.completions.create(
        model=MODEL_NAME,
        messages=_ASK,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "string", "enum": ["left", "right"]}},
        },
        logprobs=True,
        top_logprobs=2,
        frequency_penalty=1.0,
        top_p=0.5,
        logit_bias={"262": -100},
        temperature=0.7,
    )
    text = answer.choices[0].message.content
    assert text in {'"left"', '"right"'}
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert "".join(item.token for item in logprobs.content or ()) == text


def test_json_object(tiny: OpenAI) -> None:
    whole = 0
    for seed in range(6):
        answer = tiny.chat.completions.create(
            model=MODEL_NAME,
            messages=_ASK,
            response_format={"type": "json_object"},
            seed=seed,
            temperature=2.0,
            max_tokens=400,
            # End tokens and closing brackets are as likely as a letter in a model of random weights.
            logit_bias={"130": 6, "39": 3},
        )
        text = answer.choices[0].message.content
        assert text is not None
        assert text.startswith("{")
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)
            whole += 1
    assert whole > 0


def test_a_model_that_would_say_something_else(scripted: OpenAI) -> None:
    answer = scripted.chat.completions.create(
        model=MODEL_NAME,
        messages=_ASK,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"const": "I am fine."}},
        },
    )
    # The quote comes against its will, the rest from its own tokens where they fit.
    assert answer.choices[0].message.content == '"I am fine."'
    assert answer.choices[0].finish_reason == "stop"


def test_text_is_the_default_format(scripted: OpenAI) -> None:
    answer = scripted.chat.completions.create(
        model=MODEL_NAME, messages=_ASK, temperature=0, response_format={"type": "text"}
    )
    assert answer.choices[0].message.content == "I am fine."


def test_control_tokens_do_not_stand_for_their_text(tiny: OpenAI) -> None:
    answer = tiny.chat.completions.create(
        model=MODEL_NAME,
        messages=_ASK,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"const": "<|im_start|><s>"}},
        },
        # Control tokens of the tiny model: <s> and <|im_start|>.
        logit_bias={"1": 100, "3": 100},
    )
    assert answer.choices[0].message.content == '"<|im_start|><s>"'


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "((a{0,2000}){0,2000}){0,2000}"},
        {"type": "string", "maxLength": 10**12},
        {"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": {"$ref": "#/properties/a"}}},
        {"$ref": "http://127.0.0.1/schema.json"},
    ],
)
def test_schemas_that_ask_for_too_much(scripted: OpenAI, schema: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        scripted.chat.completions.create(
            model=MODEL_NAME,
            messages=_ASK,
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        )
    assert caught.value.code == "unsupported_schema"
    assert str(caught.value.param).startswith("response_format.json_schema.schema")


def test_a_grammar_open_in_many_ways_stays_bearable(tiny: OpenAI) -> None:
    schema: Any = {
        "anyOf": [
            {
                "type": "array",
                "items": {"anyOf": [{"type": "string", "pattern": letter} for letter in "abcdefghij"]},
            }
        ]
        * 32
    }
    answer = tiny.chat.completions.create(
        model=MODEL_NAME,
        messages=_ASK,
        max_tokens=20,
        timeout=30,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
    )
    assert (answer.choices[0].message.content or "").startswith("[")

"""schemathesis reads a real server's OpenAPI document and asks what it allows and what it does not.

The server keeps to the document in both directions: what it allows is answered, what it does not is refused with the
field's name, and every answer is as described, the events of streams too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import CHECKS, load_all_checks

from tests.support.asking import COMPLETION, ask
from tests.support.chat_templates import HERMES
from tests.support.llama import MODEL_NAME, ServerProcess, running_server
from tests.support.scraping import values
from tests.support.tiny_embedder import write_tiny_bert
from tests.support.tiny_gguf import write_tiny_gguf

_CHAT = "/v1/chat/completions"
load_all_checks()
_CHECKS = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
    )
]
# What the schemas cannot say: `_settled` sees to the rest of that.
_ALSO_REFUSED = {"context_length_exceeded", "unsupported_schema"}
# Each token of the byte alphabet is in every vocabulary of the tests.
_TOKENS = 256
_EXAMPLES = 80
_NOTHING: Mapping[str, Any] = {}
_PROBE = {"model": MODEL_NAME, "prompt": "Obstacle ahead", "max_tokens": 6, "temperature": 0}


@dataclass(kw_only=True)
class Target:
    """A server, its document, and how often it gave which status to what kind of data, and streams."""

    server: ServerProcess
    document: dict[str, Any]
    schema: Any
    seen: Counter[tuple[GenerationMode, int]] = field(default_factory=Counter)
    streams: int = 0


@pytest.fixture(scope="module")
def target(llama_host: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    # One slot, so that the cache after a probe holds the probe and nothing else; room for tools, which are long.
    overrides = {
        "engine.slots": 1, "engine.context_tokens": 2048, "server.limits.prompt_tokens": 2000,
        "server.limits.output_tokens": 6, "server.audit.enabled": True,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_model = write_tiny_gguf(folder / "tiny.gguf", dtype="f32", context_tokens=2048, chat_template=HERMES)
    with running_server(
        llama_host, folder, tiny_model, overrides | {"server.state_dir": str(folder)}
    ) as server:
        document = ask(server, "/openapi.json").document
        made = Target(server=server, document=document, schema=schemathesis.openapi.from_dict(document))
        _fuzz(made, _CHAT, GenerationMode.POSITIVE, examples=20)  # memory is taken as it is first used
        made.seen.clear()
        yield made


@pytest.fixture(autouse=True)
def _is_as_before(target: Target) -> Iterator[None]:
    """After each test the server answers the same, no slot is taken, the cache holds one probe, and memory is as before."""
    before, resident = _probe(target.server), target.server.resident_bytes
    yield
    assert _probe(target.server) == before
    assert target.server.resident_bytes < resident * 1.05 + (4 << 20)
    assert " error " not in target.server.log


def _probe(server: ServerProcess) -> tuple[Any, ...]:
    answer = ask(server, COMPLETION, _PROBE)
    found = values(server)
    names = ("edgeserve_slots_busy", "edgeserve_queue_requests", "edgeserve_kv_tokens")
    return answer.document["choices"], *(found[name] for name in names)


def _fuzz(
    target: Target,
    path: str,
    mode: GenerationMode,
    *,
    examples: int,
    method: str = "POST",
    change: Mapping[str, Any] = _NOTHING,
) -> None:
    """Ask with made-up data, the same in every run; `change` is laid over what is allowed."""
    operation = target.schema[path][method]

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # shrinking would ask hundreds of times more
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def run(case: Case[Any]) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body = _settled({**case.body, **change})
        response = case.call(base_url=target.server.url)
        target.seen[mode, response.status_code] += 1
        case.validate_response(response, checks=cast("Any", _CHECKS))
        _check(target, case, response, mode)

    run()


def _settled(body: dict[str, Any]) -> dict[str, Any]:
    """Settle what fields have to do with each other and with the vocabulary, which no schema says."""
    settled = dict(body)
    if not body.get("stream"):
        settled.pop("stream_options", None)
    if body.get("logprobs") is not True:
        settled.pop("top_logprobs", None)
    if None not in {body.get("max_tokens"), body.get("max_completion_tokens")}:
        del settled["max_tokens"]
    if body.get("logit_bias"):
        settled["logit_bias"] = {str(int(key) % _TOKENS): bias for key, bias in body["logit_bias"].items()}
    if "prompt" in body:
        settled["prompt"] = _known(body["prompt"])
    if "input" in body:
        settled["input"] = _known(body["input"])
    if "messages" in body:
        settled["messages"] = [_without_results(message) for message in body["messages"]]
        _settle_tools(settled)
    return settled


def _without_results(message: dict[str, Any]) -> dict[str, Any]:
    """Let a message be what it can be by itself: calls are the assistant's, and nobody has answered one."""
    settled = {key: value for key, value in message.items() if key != "tool_call_id"}
    if message["role"] == "tool":
        settled["role"] = "user"
    if message["role"] == "assistant" and message.get("tool_calls"):
        calls = [
            {**call, "function": {**call["function"], "arguments": '{"a":[1]}'}}
            for call in message["tool_calls"]
        ]
        return {**settled, "tool_calls": calls}
    settled.pop("tool_calls", None)
    return {**settled, "content": "nothing"} if message.get("content") is None else settled


def _settle_tools(body: dict[str, Any]) -> None:
    tools = {tool["function"]["name"]: tool for tool in body.get("tools") or ()}
    body["tools"] = list(tools.values())
    if not tools:
        body.pop("tool_choice", None)
        body.pop("parallel_tool_calls", None)
    elif isinstance(body.get("tool_choice"), dict):
        body["tool_choice"] = {"type": "function", "function": {"name": next(iter(tools))}}
    if tools and body.get("tool_choice") != "none":
        for key in ("logprobs", "top_logprobs", "stop", "response_format"):
            body.pop(key, None)


def _known(prompt: Any) -> Any:
    """Bring token ids into the vocabulary."""
    if isinstance(prompt, list):
        return [_known(one) for one in prompt]
    return prompt if isinstance(prompt, str) else prompt % _TOKENS


def _check(target: Target, case: Case[Any], response: Response, mode: GenerationMode) -> None:
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"]
        assert error["code"]
        if response.status_code == 400 and error["code"] != "invalid_json":
            assert error["param"], error
            assert f"'{error['param']}'" in error["message"] or error["code"] in _ALSO_REFUSED, error
        assert mode is GenerationMode.NEGATIVE or error["code"] in _ALSO_REFUSED, (error, case.body)
    # Its events were checked by `response_schema_conformance`.
    target.streams += response.headers["content-type"][0].startswith("text/event-stream")


@pytest.mark.parametrize("path", [_CHAT, COMPLETION])
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_keeps_to_its_document(target: Target, path: str, mode: GenerationMode) -> None:
    target.seen.clear()
    _fuzz(target, path, mode, examples=_EXAMPLES)
    well = {200} if mode is GenerationMode.POSITIVE else {400, 404}
    assert sum(count for (_, status), count in target.seen.items() if status in well) >= 50, target.seen


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_a_model_that_embeds_keeps_to_its_document(
    llama_host: Path, tmp_path: Path, mode: GenerationMode
) -> None:
    model = write_tiny_bert(tmp_path / "bert.gguf")
    with running_server(llama_host, tmp_path, model, {"server.limits.prompt_tokens": 100}) as server:
        document = ask(server, "/openapi.json").document
        target = Target(server=server, document=document, schema=schemathesis.openapi.from_dict(document))
        _fuzz(target, "/v1/embeddings", mode, examples=40)
    well = {200} if mode is GenerationMode.POSITIVE else {400, 404}
    assert sum(count for (_, status), count in target.seen.items() if status in well) >= 25, target.seen


@pytest.mark.parametrize("path", [_CHAT, COMPLETION])
def test_streams_as_described(target: Target, path: str) -> None:
    target.streams = 0
    _fuzz(target, path, GenerationMode.POSITIVE, examples=30, change={"stream": True})
    assert target.streams >= 20


def test_reads_as_described(target: Target) -> None:
    paths: Sequence[str] = [path for path, item in target.document["paths"].items() if "get" in item]
    assert len(paths) == 6
    for path in paths:
        target.seen.clear()
        _fuzz(target, path, GenerationMode.POSITIVE, examples=3, method="GET")
        assert (GenerationMode.POSITIVE, 200) in target.seen, (path, target.seen)

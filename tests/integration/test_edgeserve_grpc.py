"""gRPC from a real edgeserve process, asked by grpcio's own client: answers, refusals, reflection, hostile input."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebuild.grpc_health import SERVING, ask_health
from edgeserve.grpc.edge.v1 import inference_pb2 as pb
from tests.support.asking import ask
from tests.support.grpc_client import SERVICE, WAIT_S, Client, client, refusal
from tests.support.llama import MODEL_NAME, ServerProcess

ROOT = Path(__file__).parents[2]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
USER = {"role": pb.ROLE_USER, "content": "hello"}
GO: dict[str, Any] = {"prompt": "go", "temperature": 0.0}


@pytest.fixture(scope="module")
def scripted(scripted_server: ServerProcess) -> Iterator[Client]:
    with client(scripted_server.grpc_target) as made:
        yield made


@pytest.fixture(scope="module")
def tiny(tiny_server: ServerProcess) -> Iterator[Client]:
    with client(tiny_server.grpc_target) as made:
        yield made


def _over_http(server: ServerProcess, path: str, **body: Any) -> Any:
    return ask(server, path, {"model": MODEL_NAME, **body}).document["choices"][0]


class TestAnswers:
    def test_a_text_is_gone_on_with(self, scripted: Client) -> None:
        parts = list(scripted.generate(**GO))
        assert len(parts) > 1  # tokens that come quickly share a part
        assert "".join(part.text for part in parts) == "Hello world€ END of story"
        last = parts[-1]
        assert (last.text, last.finish_reason) == ("", pb.FINISH_REASON_STOP)
        assert last.usage.prompt_tokens > 0
        assert last.usage.output_tokens >= 8

    def test_a_chat_is_answered(self, scripted: Client) -> None:
        messages = [{"role": pb.ROLE_SYSTEM, "content": "Be brief."}, USER]
        text, last = scripted.answer(model=MODEL_NAME, messages=messages, temperature=0.0)
        assert (text, last.finish_reason) == ("I am fine.", pb.FINISH_REASON_STOP)

    def test_limits_of_an_answer(self, scripted: Client) -> None:
        text, last = scripted.answer(**GO, max_tokens=2)
        assert (text, last.finish_reason) == ("Hello wor", pb.FINISH_REASON_LENGTH)
        assert last.usage.output_tokens == 2
        text, last = scripted.answer(**GO, stop=["nothing", " END"])
        assert (text, last.finish_reason) == ("Hello world€", pb.FINISH_REASON_STOP)

    def test_without_max_tokens_it_is_as_long_as_the_limits_allow(self, scripted: Client) -> None:
        _, last = scripted.answer(prompt="loop", temperature=0.0)
        assert last.finish_reason == pb.FINISH_REASON_LENGTH
        assert last.usage.output_tokens == scripted.model().limits.output_tokens

    @pytest.mark.parametrize(
        "sampling",
        [
            {"temperature": 0.0},
            {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": -7},
            {"seed": 1, "repeat_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": -0.5},
        ],
    )
    def test_answers_are_those_of_http(
        self, tiny: Client, tiny_server: ServerProcess, sampling: dict[str, Any]
    ) -> None:
        text, last = tiny.answer(prompt="a b c", max_tokens=20, **sampling)
        choice = _over_http(tiny_server, "/v1/completions", prompt="a b c", max_tokens=20, **sampling)
        assert text == choice["text"]
        assert pb.FinishReason.Name(last.finish_reason) == f"FINISH_REASON_{choice['finish_reason'].upper()}"
        chat = _over_http(
            tiny_server,
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=20,
            **sampling,
        )
        assert tiny.answer(messages=[USER], max_tokens=20, **sampling)[0] == chat["message"]["content"]

    def test_tokens_are_those_of_the_prompt(self, tiny: Client) -> None:
        tokens = tiny.tokenize(prompt="a b c")
        text, last = tiny.answer(prompt="a b c", temperature=0.0, max_tokens=9)
        assert last.usage.prompt_tokens == len(tokens)
        again, last = tiny.answer(prompt_tokens=tokens, temperature=0.0, max_tokens=9)
        assert (again, last.usage.prompt_tokens) == (text, len(tokens))
        assert last.usage.cached_tokens == len(tokens) - 1
        chat = tiny.tokenize(messages=[USER])
        assert tiny.answer(messages=[USER], max_tokens=1)[1].usage.prompt_tokens == len(chat)

    def test_the_model_is_described(self, tiny: Client) -> None:
        model = tiny.model(model=MODEL_NAME)
        assert (model.name, model.engine, model.slots) == (MODEL_NAME, "llama.cpp", 2)
        assert (model.context_tokens, model.trained_context_tokens) == (1024, 2048)
        assert model.vocabulary_tokens > 256
        assert model.has_chat_template
        assert model.cpu_variant
        limits = model.limits
        assert (limits.prompt_tokens, limits.output_tokens, limits.message_bytes) == (512, 512, 65536)

    def test_each_call_is_recorded(self, scripted: Client, scripted_server: ServerProcess) -> None:
        scripted.answer(**GO, max_tokens=3)
        scripted_server.wait_for(
            rf"request interface=grpc method=rpc path=/{SERVICE}/Generate client=anonymous status=200 outcome=length "
            r"seconds=\S+ prompt_tokens=\d+ cached_tokens=\d+ output_tokens=3"
        )
        refusal(lambda: scripted.model(model="other"))
        scripted_server.wait_for(
            rf"path=/{SERVICE}/GetModel client=anonymous status=404 outcome=model_not_found"
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "code", "field"),
        [
            ({}, "missing_required_parameter", "messages"),
            ({"prompt": "a", "messages": [USER]}, "invalid_value", "prompt"),
            ({"prompt": "a", "prompt_tokens": [1]}, "invalid_value", "prompt_tokens"),
            ({"messages": [{"content": "a"}]}, "invalid_value", "messages[0].role"),
            ({"messages": [USER, {"role": 77}]}, "invalid_value", "messages[1].role"),
            ({"messages": [USER] * 2049}, "out_of_range", "messages"),
            ({"prompt": "a", "max_tokens": 0}, "out_of_range", "max_tokens"),
            ({"prompt": "a", "max_tokens": 513}, "out_of_range", "max_tokens"),
            ({"prompt": "a", "temperature": float("nan")}, "out_of_range", "temperature"),
            ({"prompt": "a", "temperature": float("inf")}, "out_of_range", "temperature"),
            ({"prompt": "a", "top_p": -0.1}, "out_of_range", "top_p"),
            ({"prompt": "a", "top_k": 2**32 - 1}, "out_of_range", "top_k"),
            ({"prompt": "a", "min_p": 2}, "out_of_range", "min_p"),
            ({"prompt": "a", "repeat_penalty": 0}, "out_of_range", "repeat_penalty"),
            ({"prompt": "a", "frequency_penalty": 3}, "out_of_range", "frequency_penalty"),
            ({"prompt": "a", "presence_penalty": -3}, "out_of_range", "presence_penalty"),
            ({"prompt": "a", "stop": [""]}, "out_of_range", "stop"),
            ({"prompt": "a", "stop": ["a"] * 17}, "out_of_range", "stop"),
            ({"prompt_tokens": [2**32 - 1]}, "out_of_range", "prompt"),
            ({"prompt": "a " * 1000}, "context_length_exceeded", "prompt"),
        ],
    )
    def test_a_field_at_fault_is_named(
        self, tiny: Client, fields: dict[str, Any], code: str, field: str
    ) -> None:
        status, message, metadata = refusal(lambda: list(tiny.generate(**fields)))
        assert (status, metadata["edge-error-code"], metadata["edge-error-field"]) == (INVALID, code, field)
        assert message.endswith(".")

    def test_another_model_is_not_found(self, tiny: Client) -> None:
        calls = (
            lambda: list(tiny.generate(model="other", prompt="a")),
            lambda: tiny.tokenize(model="other", prompt="a"),
            lambda: tiny.model(model="other"),
        )
        for call in calls:
            status, message, metadata = refusal(call)
            assert (status, metadata["edge-error-code"]) == (grpc.StatusCode.NOT_FOUND, "model_not_found")
            assert MODEL_NAME in message

    @pytest.mark.parametrize(
        ("method", "data", "field"),
        [
            ("Generate", b"\x1a\x01a\xa0\x06\x01", "100"),
            ("Generate", b"\x12\x06\x08\x02\x12\x02aa\x12\x07\x08\x02\xa2\x06\x02bb", "messages[1].100"),
            ("Tokenize", b"\x1a\x01a\x2a\x01b", "5"),
            ("GetModel", b"\x12\x01b", "2"),
        ],
    )
    def test_a_field_of_a_later_version_is_named(
        self, tiny: Client, method: str, data: bytes, field: str
    ) -> None:
        status, _, metadata = refusal(lambda: tiny.raw(method, data))
        assert (status, metadata["edge-error-code"]) == (INVALID, "unknown_parameter")
        assert metadata["edge-error-field"] == field

    @pytest.mark.parametrize("data", [b"\xff", b"\x12\x7fa", b"\x0a\x02\xff\xfe", b"\x00" * 100])
    def test_what_is_no_message_is_the_clients_fault(self, tiny: Client, data: bytes) -> None:
        for method in ("Generate", "Tokenize", "GetModel"):
            status, _, metadata = refusal(lambda method=method: tiny.raw(method, data))  # type: ignore[misc]
            assert (status, metadata["edge-error-code"]) == (INVALID, "invalid_message")

    def test_what_does_not_exist(self, tiny: Client) -> None:
        for path in (f"/{SERVICE}/Nonsense", "/edge.v2.InferenceService/Generate", "/x"):
            call: Any = tiny.channel.unary_unary(path)
            status, _, _ = refusal(lambda call=call: call(b"", timeout=WAIT_S))  # type: ignore[misc]
            assert status is grpc.StatusCode.UNIMPLEMENTED

    def test_a_message_is_no_larger_than_a_body(self, tiny: Client) -> None:
        status, message, _ = refusal(lambda: list(tiny.generate(prompt="a" * 65537)))
        assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "65536" in message

    def test_small_on_the_wire_and_huge_in_memory(self, tiny_server: ServerProcess) -> None:
        before = tiny_server.resident_bytes
        with client(tiny_server.grpc_target, compression=grpc.Compression.Gzip) as squeezed:
            status, _, _ = refusal(lambda: list(squeezed.generate(prompt="a" * (100 << 20))))
        assert status in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert tiny_server.resident_bytes < before + (16 << 20)

    def test_metadata_is_bounded(self, tiny: Client) -> None:
        request = pb.GenerateRequest(prompt="a", max_tokens=1)
        metadata = (("noise", "a" * 100_000),)
        status, _, _ = refusal(lambda: list(tiny.stream(request, metadata=metadata)))
        assert status is grpc.StatusCode.RESOURCE_EXHAUSTED


class TestServices:
    def test_health(self, tiny: Client) -> None:
        assert [tiny.health(name) for name in ("", SERVICE)] == [health_pb2.HealthCheckResponse.SERVING] * 2
        assert refusal(lambda: tiny.health("x.Y"))[0] is grpc.StatusCode.NOT_FOUND
        assert next(tiny.watch("x.Y")) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

    def test_the_builders_own_probe_understands_it(self, tiny_server: ServerProcess) -> None:
        assert ask_health(int(tiny_server.grpc_target.rpartition(":")[2]), timeout_s=WAIT_S) == SERVING
        with pytest.raises(OSError, match="HTTP/2"):
            ask_health(tiny_server.port, timeout_s=WAIT_S)

    def test_reflection_lists_the_services_and_gives_the_proto(self, tiny: Client) -> None:
        database = ProtoReflectionDescriptorDatabase(tiny.channel)
        assert set(database.get_services()) == {
            SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        file = database.FindFileContainingSymbol(SERVICE)
        assert file.name == "edge/v1/inference.proto"
        assert [method.name for method in file.service[0].method] == ["Generate", "Tokenize", "GetModel"]


def test_the_example_of_the_documentation(scripted_server: ServerProcess, tmp_path: Path) -> None:
    text = (ROOT / "docs/grpc.md").read_text()
    (tmp_path / "example.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    (arguments,) = re.findall(r"python (-m grpc_tools\.protoc .*)", text)
    folder = arguments.split()[3]
    command = [word if word != folder else str(ROOT / folder) for word in arguments.split()]
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "example.py", scripted_server.grpc_target],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout == "I am fine.\nFINISH_REASON_STOP: 5 tokens\n"


_TEXTS = st.text(max_size=40)
_NUMBERS = st.floats(width=64) | st.floats(0, 2)
_MESSAGES = st.builds(pb.Message, role=st.integers(0, 5) | st.integers(-(2**31), 2**31 - 1), content=_TEXTS)


@st.composite
def _requests(draw: st.DrawFn) -> pb.GenerateRequest:
    """Any request: every field there or not, in and out of its bounds."""
    fields: dict[str, Any] = {
        "model": st.sampled_from(["", MODEL_NAME]) | _TEXTS,
        "messages": st.lists(_MESSAGES, max_size=4),
        "prompt": _TEXTS,
        "prompt_tokens": st.lists(st.integers(0, 400) | st.integers(0, 2**32 - 1), max_size=20),
        "stop": st.lists(_TEXTS, max_size=20),
        "top_k": st.integers(0, 2**32 - 1),
        "seed": st.integers(-(2**63), 2**63 - 1),
        **dict.fromkeys(
            ("temperature", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty"),
            _NUMBERS,
        ),
    }
    given_fields = {name: draw(strategy) for name, strategy in fields.items() if draw(st.booleans())}
    return pb.GenerateRequest(max_tokens=draw(st.integers(0, 8)), **given_fields)


class TestFuzz:
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(request=_requests())
    def test_any_request_is_answered_or_refused(self, tiny: Client, request: pb.GenerateRequest) -> None:
        self._check(lambda: list(tiny.stream(request)))

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(method=st.sampled_from(["Generate", "Tokenize", "GetModel"]), data=st.binary(max_size=200))
    def test_any_bytes_are_answered_or_refused(self, tiny: Client, method: str, data: bytes) -> None:
        self._check(lambda: tiny.raw(method, data))

    def _check(self, call: Any) -> None:
        try:
            call()
        except grpc.RpcError:
            status, message, metadata = refusal(call)
            assert status in {INVALID, grpc.StatusCode.NOT_FOUND}, message
            assert metadata["edge-error-code"]

    def test_the_server_is_as_before(self, tiny: Client, tiny_server: ServerProcess) -> None:
        before = tiny_server.resident_bytes
        for number in range(300):
            refusal(lambda number=number: tiny.raw("Generate", b"\xff" + bytes([number % 256]) * 9999))  # type: ignore[misc]
        assert tiny_server.resident_bytes < before * 1.05 + (1 << 20)
        assert tiny.answer(prompt="a", max_tokens=2)[1].usage.output_tokens == 2

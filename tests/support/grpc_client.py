"""A client of edge.v1, as one would write it: grpcio's channel and the messages."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edgeserve.grpc.edge.v1 import inference_pb2 as pb

SERVICE = "edge.v1.InferenceService"
WAIT_S = 30.0

_T = TypeVar("_T")


class Client:
    """One channel to one server; every call gives up after `WAIT_S` unless told otherwise."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def generate(self, *, timeout: float | None = WAIT_S, **fields: Any) -> Any:
        """Begin an answer; iterate over what this returns, or `cancel` it."""
        return self.stream(pb.GenerateRequest(**fields), timeout=timeout)

    def stream(self, request: pb.GenerateRequest, *, timeout: float | None = WAIT_S, **options: Any) -> Any:
        """The same for a request made elsewhere."""
        method: Any = self.channel.unary_stream(
            f"/{SERVICE}/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        return method(request, timeout=timeout, **options)

    def answer(self, **fields: Any) -> tuple[str, pb.GenerateResponse]:
        """Return a whole answer and its last message."""
        parts = list(self.generate(**fields))
        assert [part.finish_reason for part in parts[:-1]] == [0] * (len(parts) - 1)
        return "".join(part.text for part in parts), parts[-1]

    def tokenize(self, **fields: Any) -> list[int]:
        """Return the tokens of a prompt."""
        reply = self._unary("Tokenize", pb.TokenizeRequest(**fields), pb.TokenizeResponse.FromString)
        return list(reply.tokens)

    def model(self, **fields: Any) -> pb.GetModelResponse:
        """Describe the model."""
        return self._unary("GetModel", pb.GetModelRequest(**fields), pb.GetModelResponse.FromString)

    def health(self, service: str = "") -> int:
        """Return the serving status of a service."""
        request = health_pb2.HealthCheckRequest(service=service)
        method: Any = health_pb2_grpc.HealthStub(self.channel)
        return int(method.Check(request, timeout=WAIT_S).status)

    def watch(self, service: str = "") -> Iterator[int]:
        """Yield the serving status of a service whenever it changes."""
        method: Any = health_pb2_grpc.HealthStub(self.channel)
        request = health_pb2.HealthCheckRequest(service=service)
        return (reply.status for reply in method.Watch(request, timeout=WAIT_S))

    def raw(self, method: str, data: bytes) -> bytes:
        """Send bytes to a method of `SERVICE` and return all that comes."""
        call: Any = self.channel.unary_stream(f"/{SERVICE}/{method}")
        return b"".join(call(data, timeout=WAIT_S))

    def _unary(self, method: str, request: Message, parse: Callable[[bytes], _T]) -> _T:
        call: Any = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=parse,
        )
        reply: _T = call(request, timeout=WAIT_S)
        return reply


@contextlib.contextmanager
def client(target: str, **options: Any) -> Iterator[Client]:
    """Open a channel without TLS."""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)], **options) as channel:
        yield Client(channel)


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Make a call that must fail; return status, message and trailing metadata."""
    try:
        call()
    except grpc.RpcError as error:
        # The one class that grpcio raises is both, which its types do not say.
        failed: Any = error
        metadata = {str(key): str(value) for key, value in failed.trailing_metadata() or ()}
        return failed.code(), failed.details(), metadata
    raise AssertionError("the call did not fail")

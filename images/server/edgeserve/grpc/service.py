"""The service edge.v1.InferenceService (edge/v1/inference.proto) over the generator that HTTP uses too."""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import grpc

from edgeserve.answers import Embedding, End, Fault, Text, ToolCall
from edgeserve.deadlines import Deadlines, make_deadlines
from edgeserve.errors import NO_RETRY, ApiError, from_fault, not_serving
from edgeserve.grpc.edge.v1 import inference_pb2 as pb
from edgeserve.grpc.gate import Handler, current_record
from edgeserve.grpc.messages import (
    check_model_request,
    end_message,
    generate_call,
    model_message,
    tokenize_call,
)
from edgeserve.grpc.reading import Context
from edgeserve.scheduler import NotServingError, Scheduler, State
from edgeserve.settings import Runtime

if TYPE_CHECKING:
    from edgeserve.generate import Generator

SERVICE: Final = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
# After the deadline, what is written so far gets this long to reach a client that reads slowly.
_LAST_WRITE_S: Final = 2.0


class Inference:
    """Answers calls; until `open` it refuses them."""

    def __init__(self, runtime: Runtime, scheduler: Scheduler) -> None:
        self._runtime = runtime
        self._scheduler = scheduler
        self._generator: Generator | None = None

    def open(self, generator: Generator) -> None:
        """Serve from now on."""
        self._generator = generator

    def handlers(self) -> grpc.GenericRpcHandler:
        """Name the methods, for a server."""
        methods: dict[str, Handler] = {
            "Generate": grpc.unary_stream_rpc_method_handler(
                self.generate,
                pb.GenerateRequest.FromString,
                pb.GenerateResponse.SerializeToString,
            ),
            "Tokenize": grpc.unary_unary_rpc_method_handler(
                self.tokenize,
                pb.TokenizeRequest.FromString,
                pb.TokenizeResponse.SerializeToString,
            ),
            "GetModel": grpc.unary_unary_rpc_method_handler(
                self.get_model,
                pb.GetModelRequest.FromString,
                pb.GetModelResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Stream an answer.

        Raises:
            ApiError: It cannot be begun or completed.
        """
        deadlines, generator = self._begin(context)
        call = generate_call(request, limits=self._runtime.server.limits, model=self._runtime.model.name)
        record = current_record()
        outputs = generator.outputs(
            call, request_id=f"grpc-{secrets.token_hex(12)}", deadlines=deadlines, record=record
        )
        try:
            async with asyncio.timeout_at(deadlines.end + _LAST_WRITE_S), aclosing(outputs):
                async for output in outputs:
                    assert not isinstance(output, (ToolCall, Embedding))  # no request asks for them
                    match output:
                        case Text():
                            await context.write(pb.GenerateResponse(text=output.text))
                        case End():
                            await context.write(end_message(output))
                        case Fault():
                            raise from_fault(output)
        except TimeoutError:
            record.end = None
            message = "The client did not read its answer in time."
            raise ApiError(504, message, code="slow_reader", headers=NO_RETRY) from None

    async def tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Make the tokens of a prompt.

        Raises:
            ApiError: It cannot be done.
        """
        deadlines, generator = self._begin(context)
        call = tokenize_call(request, limits=self._runtime.server.limits, model=self._runtime.model.name)
        tokens = await generator.tokens(call, deadlines=deadlines, record=current_record())
        return pb.TokenizeResponse(tokens=tokens)

    async def get_model(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Describe the model.

        Raises:
            ApiError: It is another one, or not loaded.
        """
        self._begin(context)
        check_model_request(request, model=self._runtime.model.name)
        return model_message(self._runtime, self._scheduler.facts)

    def _begin(self, context: Context) -> tuple[Deadlines, Generator]:
        """Start a call's clock; refuse it while there is no engine."""
        if self._generator is None or self._scheduler.state is not State.READY:
            raise not_serving(NotServingError(self._scheduler.state))
        remaining: float | None = context.time_remaining()
        client_s = math.inf if remaining is None else remaining
        now = asyncio.get_running_loop().time()
        return make_deadlines(self._runtime.server.limits, now=now, client_s=client_s), self._generator

"""Runs one generating request, whichever interface it came by.

1. Take a place in the queue, so that prompts being prepared are bounded too.
2. Make the prompt's tokens beside the event loop.
3. Hand it to the scheduler and pass its outputs on.
The deadlines hold for all of it; closing the iterator cancels whatever is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from edgeserve.answers import End, Fault, FaultKind, Output
from edgeserve.calls import ChatCall, CompletionCall
from edgeserve.deadlines import Deadlines
from edgeserve.engine.protocol import Request
from edgeserve.errors import client_limit, from_fault, not_serving, queue_full
from edgeserve.prompts import PromptMaker
from edgeserve.records import Record
from edgeserve.scheduler import ClientLimitError, NotServingError, Place, QueueFullError, Scheduler


class Generator:
    """Answers calls with one scheduler."""

    def __init__(self, scheduler: Scheduler, prompts: PromptMaker) -> None:
        self._scheduler = scheduler
        self._prompts = prompts

    async def outputs(
        self, call: ChatCall | CompletionCall, *, request_id: str, deadlines: Deadlines, record: Record
    ) -> AsyncGenerator[Output, None]:
        """Yield the answer as it grows; the last output is an `End` or a `Fault`.

        Args:
            call: What the client asks for.
            request_id: An id of its own.
            deadlines: When it must have got somewhere.
            record: Says who asks; filled in as it goes.

        Raises:
            ApiError: The request cannot be admitted; nothing was yielded.
        """
        client = record.client.account
        place = self._reserve(client)  # 1
        try:
            request = await self._prepare(call, request_id, deadlines, record)  # 2
            outputs = self._scheduler.generate(  # 3
                request, client=client, stops=call.generation.stops, deadlines=deadlines
            )
            async with aclosing(outputs):
                async for output in outputs:
                    if isinstance(output, End):
                        record.end, record.result = output, output.reason.value
                        place.release()  # the engine is done with it, however slowly the client reads
                    elif isinstance(output, Fault):
                        record.result = output.kind.value
                    yield output
        finally:
            place.release()

    async def tokens(
        self, call: ChatCall | CompletionCall, *, deadlines: Deadlines, record: Record
    ) -> tuple[int, ...]:
        """Make the tokens of a prompt and no more; it has a place in the queue meanwhile, as any request.

        Raises:
            ApiError: It cannot be admitted or made.
        """
        place = self._reserve(record.client.account)
        try:
            return await self._make_prompt(call, deadlines, record)
        finally:
            place.release()

    def _reserve(self, client: str) -> Place:
        try:
            return self._scheduler.reserve(client)
        except ClientLimitError as error:
            raise client_limit(error) from error
        except QueueFullError as error:
            raise queue_full(error) from error
        except NotServingError as error:
            raise not_serving(error) from error

    async def _prepare(
        self, call: ChatCall | CompletionCall, request_id: str, deadlines: Deadlines, record: Record
    ) -> Request:
        generation = call.generation
        self._prompts.check_tokens_exist((token for token, _ in generation.sampling.logit_bias), "logit_bias")
        prompt = await self._make_prompt(call, deadlines, record)
        most = self._prompts.output_tokens(len(prompt), generation.output_tokens, generation.output_field)
        return Request(id=request_id, prompt=prompt, output_tokens=most, sampling=generation.sampling)

    async def _make_prompt(
        self, call: ChatCall | CompletionCall, deadlines: Deadlines, record: Record
    ) -> tuple[int, ...]:
        try:
            async with asyncio.timeout_at(deadlines.first_token):
                record.prompt = await self._prompts.make(call)
        except TimeoutError:
            is_over = deadlines.first_token == deadlines.end
            kind = FaultKind.DEADLINE if is_over else FaultKind.FIRST_TOKEN
            raise from_fault(Fault(kind=kind)) from None
        return record.prompt

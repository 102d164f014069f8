"""Runs one generating request, whichever interface it came by.

1. Take a place in the queue, so that prompts being prepared are bounded too.
2. Make the grammar of the answer, if it has a form, and the prompt's tokens beside the event loop, or those of its windows.
3. Hand it to the scheduler, window by window or once for each answer wanted, and pass its outputs on.
The deadlines hold for all of it; closing the iterator cancels whatever is under way.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from edgeserve.answers import End, Fault, FaultKind, Output
from edgeserve.calls import ChatCall, CompletionCall, EmbeddingCall, Generation
from edgeserve.chats import AnswerForm
from edgeserve.choices import answer_choices, choice_requests
from edgeserve.deadlines import Deadlines
from edgeserve.engine.protocol import EmbeddingRequest, Request
from edgeserve.errors import ApiError, client_limit, from_fault, invalid, not_serving, queue_full
from edgeserve.prompts import PromptMaker
from edgeserve.records import Record
from edgeserve.scheduler import ClientLimitError, NotServingError, Place, QueueFullError, Scheduler
from edgeserve.stitching import answer_windows
from edgeserve.windows import Windows

_T = TypeVar("_T")


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
        if self._scheduler.facts.vector_length:
            raise _not_done("embeds texts and generates none; use /v1/embeddings", "no_generation")
        place = self._reserve(record.client.account, call.generation.choices)  # 1
        try:
            form = await _in_time(self._prompts.form(call), deadlines)  # 2
            call = _with_form(call, form)
            windows = await self._prepare(call, deadlines, record)
            answer = _Answer(
                call=call, form=form, windows=windows, request_id=request_id, deadlines=deadlines, place=place
            )
            outputs = self._answer(answer)  # 3
            async with aclosing(outputs):
                async for output in outputs:
                    _note(output, record, place)
                    yield output
        finally:
            place.release()

    async def embeddings(
        self, call: EmbeddingCall, *, request_id: str, deadlines: Deadlines, record: Record
    ) -> AsyncGenerator[Output, None]:
        """Yield an `Embedding` of each text, in their order; the last output is an `End` or a `Fault`.

        Raises:
            ApiError: The model embeds nothing, or the request cannot be admitted; nothing was yielded.
        """
        if not self._scheduler.facts.vector_length:
            raise _not_done(
                "embeds no texts: its file names no way to make one vector of a text", "no_embeddings"
            )
        place = self._reserve(record.client.account)
        try:
            record.call = call
            prompts = await _in_time(self._prompts.make_inputs(call), deadlines)
            record.prompt = tuple(token for prompt in prompts for token in prompt)
            outputs = self._scheduler.generate(
                EmbeddingRequest(id=request_id, prompts=prompts),
                client=place.client,
                stops=(),
                deadlines=deadlines,
                place=place,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    _note(output, record, place)
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
            record.call = call
            record.prompt = await _in_time(self._prompts.make(call), deadlines)
            return record.prompt
        finally:
            place.release()

    def _reserve(self, client: str, answers: int = 1) -> Place:
        most = self._scheduler.most_of_one
        if answers > most:
            raise invalid(
                f"'n' is {answers}; this server gives at most {most} answers at once.",
                "n",
                code="out_of_range",
            )
        try:
            return self._scheduler.reserve(client, answers)
        except ClientLimitError as error:
            raise client_limit(error) from error
        except QueueFullError as error:
            raise queue_full(error) from error
        except NotServingError as error:
            raise not_serving(error) from error

    async def _prepare(
        self, call: ChatCall | CompletionCall, deadlines: Deadlines, record: Record
    ) -> Windows:
        record.call = call
        sampling = call.generation.sampling
        self._prompts.check_tokens_exist((token for token, _ in sampling.logit_bias), "logit_bias")
        windows = await _in_time(self._prompts.make_windows(call), deadlines)
        record.prompt = tuple(token for prompt in windows.prompts for token in prompt)
        if len(windows.prompts) > 1:
            _check_windows(call.generation)
        return windows

    def _answer(self, answer: _Answer) -> AsyncGenerator[Output, None]:
        generation, prompts = answer.call.generation, answer.windows.prompts
        wanted, field = generation.output_tokens, generation.output_field
        later = dataclasses.replace(answer.deadlines, first_token=answer.deadlines.end)

        def generate(request: Request, number: int) -> AsyncGenerator[Output, None]:
            outputs = self._scheduler.generate(
                request,
                client=answer.place.client,
                stops=generation.stops,
                deadlines=later if number else answer.deadlines,
                # An answer that has begun is not taken away any more.
                place=None if number else answer.place,
            )
            return outputs if answer.form.read is None else answer.form.read(outputs)

        if len(prompts) == 1:
            most = self._prompts.output_tokens(len(prompts[0]), wanted, field)
            request = Request(
                id=answer.request_id, prompt=prompts[0], output_tokens=most, sampling=generation.sampling
            )
            if generation.choices == 1:
                return generate(request, 0)
            return answer_choices(choice_requests(request, generation.choices), generate)
        most = self._prompts.windows_output_tokens(len(prompts), wanted, field)
        requests = tuple(
            Request(
                id=f"{answer.request_id}.{number}",
                prompt=prompt,
                output_tokens=min(most, self._prompts.room(len(prompt))),
                sampling=generation.sampling,
            )
            for number, prompt in enumerate(prompts)
        )
        return answer_windows(requests, generate, output_tokens=most, overlap=answer.windows.overlap)


def _note(output: Output, record: Record, place: Place) -> None:
    """Write down what became of a request."""
    if isinstance(output, End):
        record.end, record.result = output, output.reason.value
        place.release()  # the engine is done with it, however slowly the client reads
    elif isinstance(output, Fault):
        record.result = output.kind.value


def _not_done(what: str, code: str) -> ApiError:
    return invalid(f"This model {what}.", "model", code=code)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """All that it takes to generate an answer."""

    call: ChatCall | CompletionCall
    form: AnswerForm
    windows: Windows
    request_id: str
    deadlines: Deadlines
    place: Place


def _with_form(call: ChatCall | CompletionCall, form: AnswerForm) -> ChatCall | CompletionCall:
    if not form.grammar:
        return call
    sampling = dataclasses.replace(call.generation.sampling, grammar=form.grammar, spoken=form.spoken)
    return dataclasses.replace(call, generation=dataclasses.replace(call.generation, sampling=sampling))


def _check_windows(generation: Generation) -> None:
    """Refuse what cannot be put together from the answers about several windows.

    Raises:
        ApiError: It is asked for.
    """
    sampling = generation.sampling
    if sampling.grammar or sampling.logprobs is not None:
        what = "an answer with a given form" if sampling.grammar else "an answer with log probabilities"
    elif generation.choices > 1:
        what = "more than one answer"
    else:
        return
    message = (
        f"The prompt is too long to be answered at once, and {what} cannot be put together from several."
    )
    raise invalid(message, None, code="context_length_exceeded")


async def _in_time(work: Awaitable[_T], deadlines: Deadlines) -> _T:
    """Wait for what comes before the first token.

    Raises:
        ApiError: It took too long.
    """
    try:
        async with asyncio.timeout_at(deadlines.first_token):
            return await work
    except TimeoutError:
        is_over = deadlines.first_token == deadlines.end
        kind = FaultKind.DEADLINE if is_over else FaultKind.FIRST_TOKEN
        raise from_fault(Fault(kind=kind)) from None

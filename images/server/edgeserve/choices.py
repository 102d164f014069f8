"""Several answers to one prompt at the same time, as one stream of outputs."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from edgeserve.answers import Embedding, End, Fault, Output
from edgeserve.engine.protocol import SEEDS, Request, Sampling


def choice_requests(request: Request, count: int) -> tuple[Request, ...]:
    """Make a request for each answer, which differ in their seeds."""
    return tuple(
        dataclasses.replace(
            request, id=f"{request.id}.{number}", sampling=_with_seed(request.sampling, number)
        )
        for number in range(count)
    )


def _with_seed(sampling: Sampling, number: int) -> Sampling:
    return dataclasses.replace(sampling, seed=(sampling.seed + number) % SEEDS)


async def answer_choices(
    requests: tuple[Request, ...], generate: Callable[[Request, int], AsyncGenerator[Output, None]]
) -> AsyncGenerator[Output, None]:
    """Answer all requests; the last output is the `End` of all together or a `Fault`, which ends the others.

    The others begin with the first output of the first: its prompt is computed by then, and theirs is a copy.

    Args:
        requests: One for each answer, with the same prompt.
        generate: Answers a request; told its number, from 0 on.
    """
    # Not bounded: the outputs are no more than their tokens. None follows the last one of each.
    outputs: asyncio.Queue[tuple[int, Output | None]] = asyncio.Queue()

    async def work(number: int) -> None:
        try:
            async with aclosing(generate(requests[number], number)) as given:
                async for output in given:
                    outputs.put_nowait((number, output))
        finally:
            outputs.put_nowait((number, None))

    ends: dict[int, End] = {}
    tasks = [asyncio.create_task(work(0))]
    try:
        while len(ends) < len(requests):
            number, output = await outputs.get()
            if len(tasks) == 1:
                tasks += [asyncio.create_task(work(other)) for other in range(1, len(requests))]
            if output is None:
                await tasks[number]  # raises what it raised
            elif isinstance(output, Fault):
                yield output
                return
            elif isinstance(output, End):
                ends[number] = output
            else:
                assert not isinstance(output, Embedding)
                yield dataclasses.replace(output, choice=number)
        yield _sum([ends[number] for number in range(len(requests))])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What a task raised holds this frame, which would hold the task.
        tasks.clear()


def _sum(ends: list[End]) -> End:
    """Count all answers together; the prompt is the same, and what the first had of it in the cache is what counts."""
    return dataclasses.replace(
        ends[0],
        other_reasons=tuple(end.reason for end in ends[1:]),
        output_tokens=sum(end.output_tokens for end in ends),
        total_s=max(end.total_s for end in ends),
    )

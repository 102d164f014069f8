"""Exact answers: prompts go through the image's own engine and chat template, and are answered greedily, as on a device."""

from collections.abc import Callable, Sequence
from typing import Final

from edgebuild.model.evaluation.prompts_worker import Prompts
from edgeserve.engine.library import Library
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.opening import open_llama
from edgeserve.engine.protocol import (
    Engine,
    EngineError,
    Finish,
    FinishReason,
    Request,
    Sampling,
    Token,
    Vector,
)
from edgeserve.log import Log
from edgeserve.settings import EngineSettings

_SLOTS: Final = 8
_LEAST_CONTEXT_TOKENS: Final = 64
_GREEDY: Final = Sampling(temperature=0.0)
_TOLD_EVERY: Final = 10
# So much longer than the expected answer may one be before it is cut: enough to tell that it is another.
_SURPLUS_TOKENS: Final = 4

# A prompt and the answer that is right, to the letter.
Task = tuple[str, str]


def answer_tasks(
    files: tuple[str, ...], tasks: Sequence[Task], *, threads: int, log: Log, told: Callable[[str], None]
) -> list[str]:
    """Answer every task.

    Args:
        files: The model, in order.
        tasks: At least one.
        threads: Threads that compute.
        log: Takes what the engine says.
        told: Told how far it is.

    Returns:
        The answers, in the order of the tasks; one that is wrong may be cut short.

    Raises:
        EngineError: The model does not load, or a task does not fit its context.
    """
    prompts = _prepare(files, tasks, log)
    settings = EngineSettings(
        context_tokens=max(_LEAST_CONTEXT_TOKENS, *(len(prompt) + room for prompt, room in prompts)),
        slots=min(_SLOTS, len(tasks)),
        threads=threads,
        batch_tokens=512,
    )
    engine = open_llama(files, settings, log)
    try:
        return _generate(engine, prompts, told)
    finally:
        engine.close()


def _prepare(files: tuple[str, ...], tasks: Sequence[Task], log: Log) -> list[tuple[tuple[int, ...], int]]:
    """Return each prompt's tokens, and how many its answer may have."""
    model = LlamaModel(Library("", log), files)
    try:
        asked = Prompts(model)
        found = []
        for number, (prompt, expected) in enumerate(tasks, 1):
            tokens = asked.tokens(prompt)
            # Another spelling of the same text has more tokens, but never more than bytes.
            most = min(2 * len(asked.answer(expected)), len(expected.encode()))
            room = most + _SURPLUS_TOKENS
            if len(tokens) + room > model.trained_context_tokens:
                raise EngineError(
                    f"task {number} takes {len(tokens) + room} tokens with its answer, the model was trained for {model.trained_context_tokens}"
                )
            found.append((tokens, room))
        return found
    finally:
        model.close()


def _generate(
    engine: Engine, prompts: Sequence[tuple[tuple[int, ...], int]], told: Callable[[str], None]
) -> list[str]:
    pieces: list[list[bytes]] = [[] for _ in prompts]
    submitted = done = 0
    while done < len(prompts):
        stats = engine.stats()
        for _ in range(min(stats.slots - stats.busy_slots, len(prompts) - submitted)):
            prompt, room = prompts[submitted]
            engine.submit(Request(id=str(submitted), prompt=prompt, output_tokens=room, sampling=_GREEDY))
            submitted += 1
        for event in engine.step():
            assert not isinstance(event, Vector)  # what embeds texts has refused the requests
            match event:
                case Token():
                    pieces[int(event.request_id)].append(event.piece)
                case Finish():
                    done += 1
                    if event.reason is FinishReason.FAILED:
                        raise EngineError(f"task {int(event.request_id) + 1} could not be computed")
                    if done % _TOLD_EVERY == 0:
                        told(f"task {done}/{len(prompts)}")
    return [b"".join(some).decode("utf-8", "replace") for some in pieces]

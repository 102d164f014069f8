"""What a model is worth: perplexity of text that it was not trained on, and answers right to the letter."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgetorch.events import Events
from edgetorch.models import count_parameters, weights_bytes
from edgetorch.order import cut_batches
from edgetorch.texts import Row, Task, ending_tokens, question_text

BATCH_TOKENS = 2048
TASKS_AT_ONCE = 64
# An answer that is longer than what is expected is wrong anyway.
LONGER_TOKENS = 4
IGNORED = -100  # functional.cross_entropy's own mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tokens and targets of several rows, both of shape (rows, tokens); a target is `IGNORED` where none is asked for."""

    tokens: Tensor
    targets: Tensor


def make_batch(rows: Sequence[Row]) -> Batch:
    """Pad rows on the right, where causal attention never looks; the target of a position is the token after it."""
    width = max(len(row.tokens) for row in rows) - 1
    tokens = torch.zeros((len(rows), width), dtype=torch.long)
    targets = torch.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        line = torch.tensor(row.tokens)
        tokens[index, : len(line) - 1] = line[:-1]
        targets[index, row.first - 1 : len(line) - 1] = line[row.first :]
    return Batch(tokens=tokens, targets=targets)


def batches_of(rows: Sequence[Row]) -> Iterator[Batch]:
    """Yield all rows in batches of similar length."""
    sorted_rows = sorted(rows, key=lambda row: len(row.tokens))
    for start, stop in cut_batches([len(row.tokens) for row in sorted_rows], BATCH_TOKENS):
        yield make_batch(sorted_rows[start:stop])


def wanted_logits(model: Any, batch: Batch) -> Tensor:
    """Score the vocabulary at the positions that have a target: shape (targets, vocabulary), 32 bit."""
    hidden = model.base_model(input_ids=batch.tokens, use_cache=False).last_hidden_state
    scores: Tensor = model.get_output_embeddings()(hidden[batch.targets != IGNORED])
    return scores


def mean_loss(model: Any, rows: Sequence[Row], *, on_rows: Callable[[int, int], None] | None = None) -> float:
    """Return the mean cross entropy of a token, in nats.

    Args:
        model: Of transformers.
        rows: What to read.
        on_rows: Told how many rows of how many are read, if given.
    """
    total = 0.0
    count = done = 0
    for batch in batches_of(rows):
        targets = batch.targets[batch.targets != IGNORED]
        with torch.no_grad():
            total += float(functional.cross_entropy(wanted_logits(model, batch), targets, reduction="sum"))
        count += len(targets)
        done += len(batch.tokens)
        if on_rows:
            on_rows(done, len(rows))
    return total / count


def count_exact(model: Any, tokenizer: Any, tasks: Sequence[Task], *, events: Events) -> int:
    """Count the tasks that are answered to the letter, decoding greedily."""
    asked = [tokenizer(question_text(tokenizer, task.prompt), add_special_tokens=not tokenizer.chat_template).input_ids
             for task in tasks]  # fmt: skip
    order = sorted(range(len(tasks)), key=lambda index: len(asked[index]))
    right = 0
    for start in range(0, len(order), TASKS_AT_ONCE):
        some = order[start : start + TASKS_AT_ONCE]
        answers = _answers(
            model, tokenizer, [asked[index] for index in some], [tasks[index] for index in some]
        )
        right += sum(
            answer == tasks[index].expected.strip() for answer, index in zip(answers, some, strict=True)
        )
        events.progress(start + len(some), len(tasks), "tasks")
    return right


def _answers(model: Any, tokenizer: Any, asked: list[list[int]], tasks: Sequence[Task]) -> list[str]:
    """Answer questions of similar length at once, padded on the left."""
    from transformers import GenerationConfig  # noqa: PLC0415 - slow to import, and only tasks need it

    ends = ending_tokens(tokenizer, model)
    longest = max(len(tokenizer(task.expected, add_special_tokens=False).input_ids) for task in tasks)
    width = max(len(tokens) for tokens in asked)
    pad = ends[0] if ends else 0
    settings = GenerationConfig(
        max_new_tokens=longest + LONGER_TOKENS,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
    )
    given = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(tokens)) + tokens for tokens in asked]),
        attention_mask=torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in asked]),
        generation_config=settings,
    )
    return [text.strip() for text in tokenizer.batch_decode(given[:, width:], skip_special_tokens=True)]


def figures(
    model: Any,
    tokenizer: Any,
    *,
    folder: str,
    held_out: Sequence[Row],
    tasks: Sequence[Task],
    events: Events,
) -> dict[str, Any]:
    """Measure everything that the report shows of one model.

    Returns:
        parameters, layers, weights_bytes, perplexity and exact (share of the tasks, None without tasks).
    """
    loss = mean_loss(model, held_out, on_rows=lambda done, total: events.progress(done, total, "rows"))
    exact = count_exact(model, tokenizer, tasks, events=events) / len(tasks) if tasks else None
    return {
        "parameters": count_parameters(model),
        "layers": int(model.config.num_hidden_layers),
        "weights_bytes": weights_bytes(folder),
        # JSON knows no infinity; a model that is broken to this degree is told by the largest number instead.
        "perplexity": math.exp(min(loss, 700.0)) if not math.isnan(loss) else None,
        "exact": exact,
    }

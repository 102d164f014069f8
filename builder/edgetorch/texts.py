"""The user's text as rows of tokens, and the part of it that is held out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetorch.events import Events, WorkerError

LEAST_TOKENS = 512
LEAST_LINES = 10
HELD_OUT_SHARE = 10  # one in so many
# Enough for a figure that holds in its third digit, and bounded, since it is measured several times.
HELD_OUT_TOKENS = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence.

    Attributes:
        tokens: At least two.
        first: Index of the first token that is to be predicted, at least 1.
    """

    tokens: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Both parts of a text; they have no row in common."""

    training: tuple[Row, ...]
    held_out: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question with the answer that is expected to the letter."""

    prompt: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a model is measured and trained with.

    Attributes:
        text: File of the user's text, UTF-8.
        is_lines: Whether it holds JSON lines.
        tasks: What exact matches are counted of; may be none.
        context_tokens: Length of the longest row.
    """

    text: str
    is_lines: bool
    tasks: tuple[Task, ...]
    context_tokens: int


def parse_material(document: Mapping[str, Any]) -> Material:
    """Take what edgebuild names; tasks come with it, as pairs of a question and its answer."""
    tasks = tuple(Task(prompt=prompt, expected=expected) for prompt, expected in document["tasks"])
    return Material(**{**document, "tasks": tasks})


def load_text(material: Material, tokenizer: Any, *, context_tokens: int, events: Events) -> Text:
    """Tokenize a text and split it.

    Plain text is cut into blocks, of which the last tenth is held out. Of JSON lines every tenth that differs from all
    before is held out; lines that are tasks are left out, so that exact matches are not learnt by heart.

    Args:
        material: Names the text and tells the tasks.
        tokenizer: Of transformers.
        context_tokens: Length of the longest row that the models take.
        events: Told how many lines are left out.

    Raises:
        WorkerError: There is too little of it.
    """
    if not material.is_lines:
        return _split_blocks(_tokens_of(material.text, tokenizer), context_tokens)
    asked = {task.prompt for task in material.tasks}
    rows: dict[Row, None] = {}
    is_task = too_long = 0
    for line in _json_lines(material.text):
        if _prompt_of(line) in asked:
            is_task += 1
            continue
        row = _row_of(line, tokenizer)
        if len(row.tokens) > context_tokens:
            too_long += 1
        else:
            rows[row] = None
    if is_task:
        events.note(f"lines of the text that are tasks too, left out: {is_task}")
    if too_long:
        events.note(f"lines of the text with more than {context_tokens} tokens, left out: {too_long}")
    if len(rows) < LEAST_LINES:
        raise WorkerError(
            "text",
            f"the text has {len(rows)} lines to use; at least {LEAST_LINES} different ones are needed",
            hint="give more text; some thousand lines make a difference",
        )
    return Text(
        training=tuple(row for index, row in enumerate(rows) if index % HELD_OUT_SHARE),
        held_out=some_rows(
            [row for index, row in enumerate(rows) if index % HELD_OUT_SHARE == 0], HELD_OUT_TOKENS
        ),
    )


def some_rows(rows: Sequence[Row], tokens: int) -> tuple[Row, ...]:
    """Take rows from everywhere in the text, evenly, of together about so many tokens, at least one."""
    every = max(1, round(sum(len(row.tokens) for row in rows) / tokens))
    return tuple(rows[::every])


def ending_tokens(tokenizer: Any, model: Any = None) -> tuple[int, ...]:
    """Return the tokens that end an answer, the tokenizer's own first."""
    found = [tokenizer.eos_token_id]
    if model is not None:
        named = model.generation_config.eos_token_id
        found += named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def question_text(tokenizer: Any, prompt: str) -> str:
    """Write a question in the model's form of a chat, up to where the model begins; as it is without such a form."""
    if not tokenizer.chat_template:
        return prompt
    return str(_chat(tokenizer, [{"role": "user", "content": prompt}]))


def _chat(tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _row_of(line: dict[str, Any], tokenizer: Any) -> Row:
    ends = ending_tokens(tokenizer)[:1]
    if "text" in line:
        tokens = (*_encode(tokenizer, line["text"], has_special=True), *ends)
        return Row(tokens=tokens, first=1)
    if "messages" in line:
        if not tokenizer.chat_template:
            raise WorkerError(
                "text",
                'the text holds chats ("messages"), and the model has no chat template',
                hint='give lines with "prompt" and "expected", or plain text',
            )
        head, answer = str(_chat(tokenizer, line["messages"][:-1])), line["messages"][-1]["content"]
    else:
        head, answer = question_text(tokenizer, line["prompt"]), line["expected"]
    # A chat template writes the begin-of-sequence token itself, if there is one.
    asked = _encode(tokenizer, head, has_special=not tokenizer.chat_template)
    together = _encode(tokenizer, head + answer, has_special=not tokenizer.chat_template)
    # Alone, an answer may begin with a space that SentencePiece adds; together, it may grow into the question's last token.
    answered = (
        together[len(asked) :]
        if together[: len(asked)] == asked
        else _encode(tokenizer, answer, has_special=False)
    )
    return Row(tokens=(*asked, *answered, *ends), first=max(1, len(asked)))


def _prompt_of(line: dict[str, Any]) -> str | None:
    if "messages" in line:
        asked = [message["content"] for message in line["messages"] if message["role"] == "user"]
        return asked[-1] if asked else None
    return line.get("prompt")


def _encode(tokenizer: Any, text: str, *, has_special: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=has_special, verbose=False).input_ids)


def _tokens_of(path: str, tokenizer: Any) -> list[int]:
    """Tokenize a plain text paragraph by paragraph: a tokenizer takes long texts as a whole more than once in memory."""
    tokens: list[int] = []
    for part in _paragraphs(Path(path)):
        tokens += _encode(tokenizer, part, has_special=False)
    return tokens


def _paragraphs(path: Path) -> Iterable[str]:
    """Yield the text in parts of about 64 KiB that end with a line."""
    part: list[str] = []
    size = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line in file:
            part.append(line)
            size += len(line)
            if size >= 1 << 16:
                yield "".join(part)
                part, size = [], 0
    if part:
        yield "".join(part)


def _split_blocks(tokens: list[int], context_tokens: int) -> Text:
    if len(tokens) < LEAST_TOKENS:
        raise WorkerError(
            "text",
            f"the text has {len(tokens)} tokens; at least {LEAST_TOKENS} are needed",
            hint="give more text; some hundred thousand tokens make a difference",
        )
    # Short texts are cut finer, so that a tenth is a block at least.
    length = min(context_tokens, len(tokens) // HELD_OUT_SHARE)
    blocks = [
        Row(tokens=tuple(tokens[start : start + length]), first=1)
        for start in range(0, len(tokens) - 1, length)
    ]
    cut = len(blocks) - max(1, len(blocks) // HELD_OUT_SHARE)
    return Text(training=tuple(blocks[:cut]), held_out=some_rows(blocks[cut:], HELD_OUT_TOKENS))


def _json_lines(path: str) -> Iterable[dict[str, Any]]:
    """Yield the objects; edgebuild has checked every line before it started this program, and ends lines at the same bytes."""
    with Path(path).open(encoding="utf-8-sig", newline="\n") as file:
        yield from (json.loads(line) for line in file if line.strip())

"""The user's text, checked whole before anything slow begins."""

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.errors import UsageError
from edgebuild.model.evaluation.inputs import EvaluationTasks
from edgebuild.oci.digest import Digest

_FORMS = '{"prompt": …, "expected": …}, {"text": …} or {"messages": [{"role": …, "content": …}, …]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """A file of text that can be read.

    Attributes:
        path: Absolute path.
        is_lines: Whether it holds JSON lines; its name ends with ".jsonl" then.
        digest: sha256.
    """

    path: Path
    is_lines: bool
    digest: Digest


def check_text(path: Path) -> TextFile:
    """Read a text once and check its form.

    Raises:
        UsageError: It cannot be read, is empty, not UTF-8, or a line has another form.
    """
    is_lines = path.suffix == ".jsonl"
    state = hashlib.sha256()
    is_empty = True
    try:
        for number, line in enumerate(_lines(path), 1):
            state.update(line)
            # Of the file, not of each line.
            words = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            text = _decode(words, f"{path}:{number}")
            if not text.strip():
                continue
            is_empty = False
            if is_lines and not _is_line(_parse(text)):
                raise UsageError(
                    f"{path}:{number}: no line of the form {_FORMS}", hint="write one such object a line"
                )
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror}", hint="check the file that --text names"
        ) from error
    if is_empty:
        raise UsageError(f"{path} is empty", hint="give a file with text")
    return TextFile(path=path, is_lines=is_lines, digest=Digest(state.hexdigest()))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _decode(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{place}: not UTF-8 (byte {line[error.start]:#04x})", hint="give text in UTF-8"
        ) from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    if "text" in line:
        return isinstance(line["text"], str) and bool(line["text"])
    if "messages" in line:
        return _is_chat(line["messages"])
    return all(isinstance(line.get(name), str) and line[name] for name in ("prompt", "expected"))


def _is_chat(messages: Any) -> bool:
    """Whether it is a conversation that ends with what the model is to say."""
    return (
        isinstance(messages, list)
        and len(messages) >= 2
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        )
        and messages[-1]["role"] == "assistant"
    )


def material(text: TextFile, tasks: EvaluationTasks | None, *, context_tokens: int) -> dict[str, object]:
    """Name the text for `edgetorch`, and tell it the tasks.

    Args:
        text: Checked.
        tasks: What exact matches are counted of, or None.
        context_tokens: Length of the longest row.
    """
    return {
        "text": str(text.path),
        "is_lines": text.is_lines,
        "tasks": () if tasks is None else tasks.tasks,
        "context_tokens": context_tokens,
    }

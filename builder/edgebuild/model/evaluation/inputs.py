"""What models are measured with: a text, chats, tasks; edgebuild's own or the user's."""

import json
from dataclasses import dataclass
from pathlib import Path

from edgebuild.canonical import canonical_json
from edgebuild.data import data_path
from edgebuild.errors import UsageError
from edgebuild.oci.digest import Digest

_MOST_BYTES = 64 << 20
_DEMO_TASKS = 250
# Neither the tasks nor the chats that are measured reach so far.
_DEMO_CALIBRATION = 500
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationText:
    """A text that models are measured on.

    Attributes:
        name: For people: the file's name.
        digest: sha256 of its content.
        text: Plain text; empty for chats.
        chats: Prompts and answers, of which the answers are scored; empty for plain text.
    """

    name: str
    digest: Digest
    text: str = ""
    chats: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTasks:
    """Tasks that models answer.

    Attributes:
        name: For people: the file's name.
        digest: sha256 of the tasks.
        tasks: Prompts and the answers that are right.
    """

    name: str
    digest: Digest
    tasks: tuple[Pair, ...]


def load_text(path: Path) -> EvaluationText:
    """Load a text of the user's: plain text, or chats when it is called `*.jsonl`.

    Raises:
        UsageError: It cannot be read or is of another form.
    """
    data = _read(path)
    if path.suffix == ".jsonl":
        chats = _pairs(path, data)
        return EvaluationText(name=path.name, digest=Digest.of(data), chats=chats)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: byte {error.start} is not UTF-8", hint="give a text in UTF-8, or chats as .jsonl"
        ) from error
    # Ends of lines as Python reads them from a file of text.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return EvaluationText(name=path.name, digest=Digest.of(data), text=text)


def load_tasks(path: Path) -> EvaluationTasks:
    """Load tasks of the user's.

    Raises:
        UsageError: They cannot be read or are of another form.
    """
    return _tasks(path.name, _pairs(path, _read(path)))


def default_text(*, is_demo: bool) -> EvaluationText:
    """Return the text that ships with edgebuild; the demo model has one of its own, since it knows nothing else."""
    return load_text(
        data_path("images") / "demo-model/heldout.jsonl" if is_demo else data_path("evaluation") / "text.txt"
    )


def default_tasks(*, is_demo: bool) -> EvaluationTasks | None:
    """Return the demo model's tasks; other models have none of ours."""
    if not is_demo:
        return None
    path = data_path("images") / "demo-model/heldout.jsonl"
    return _tasks(path.name, _pairs(path, _read(path))[:_DEMO_TASKS])


def default_calibration(*, is_demo: bool) -> EvaluationText:
    """Return the text that importance matrices are computed from; the demo model's has nothing that it is measured on."""
    if not is_demo:
        return default_text(is_demo=False)
    path = data_path("images") / "demo-model/heldout.jsonl"
    chats = _pairs(path, _read(path))[_DEMO_CALIBRATION:]
    return EvaluationText(
        name=f"{path.name}, from line {_DEMO_CALIBRATION + 1}", digest=_digest(chats), chats=chats
    )


def _tasks(name: str, pairs: tuple[Pair, ...]) -> EvaluationTasks:
    return EvaluationTasks(name=name, digest=_digest(pairs), tasks=pairs)


def _digest(pairs: tuple[Pair, ...]) -> Digest:
    return Digest.of(canonical_json([list(pair) for pair in pairs]))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint="check the path") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{path}: larger than {_MOST_BYTES >> 20} MiB", hint="give a part of it")
    if not data.strip():
        raise UsageError(f"{path}: is empty", hint="give a text, or one JSON object a line")
    return data


def _pairs(path: Path, data: bytes) -> tuple[Pair, ...]:
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            pair = document["prompt"], document["expected"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise _malformed(path, number) from error
        if not all(isinstance(text, str) and text for text in pair):
            raise _malformed(path, number)
        found.append(pair)
    return tuple(found)


def _malformed(path: Path, line: int) -> UsageError:
    return UsageError(
        f'{path}:{line}: is no JSON object with the texts "prompt" and "expected"',
        hint='write one a line: {"prompt": "…", "expected": "…"}',
    )

"""Measures a model in a process of its own: `python -P -B -m edgebuild.model.evaluation.evaluate_worker`.

A JSON document on standard input says what to do; progress goes to standard output line by line, and the last line is
the result as JSON. The last line of standard error is the reason of a failure. Exit codes: 0 done, 1 the model or the
text cannot be measured, 2 the memory does not suffice or a file cannot be read or written, 3 the disk is full.
"""

import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgebuild.model.evaluation.distributions_worker import Distributions
from edgebuild.model.evaluation.exit_codes import DISK_FULL, FAILED, REFUSED
from edgebuild.model.evaluation.matrix_worker import collect_matrix
from edgebuild.model.evaluation.statistics_worker import Scored, compared, perplexity
from edgebuild.model.evaluation.tasks_worker import answer_tasks
from edgebuild.model.evaluation.text_worker import (
    Chunk,
    Reader,
    compare,
    cut_chats,
    cut_text,
    load_reference,
    measure_reference,
)
from edgeserve.engine.library import Library
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import EngineError
from edgeserve.log import Log


def _told(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _collect(request: dict[str, Any]) -> dict[str, Any]:
    """Compute an importance matrix."""
    model, library = _load(request)
    chunks = _chunks(request, model)
    collect_matrix(
        library,
        model,
        chunks,
        file=Path(request["file"]),
        text=request["name"],
        threads=request["threads"],
        told=_told,
    )
    return {"chunks": len(chunks)}


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """Score a text with the original."""
    model, library = _load(request)
    chunks = _chunks(request, model)
    reader, distributions = _open(request, model, library, chunks)
    folder = request.get("folder")
    scored = measure_reference(
        reader, distributions, chunks, folder=None if folder is None else Path(folder), told=_told
    )
    return _figures(scored, chunks)


def _compare(request: dict[str, Any]) -> dict[str, Any]:
    """Score the same text with another model."""
    reference = load_reference(Path(request["folder"]))
    model, library = _load(request)
    reader, distributions = _open(request, model, library, reference.chunks)
    scored = compare(reader, distributions, reference, told=_told)
    return _figures(scored, reference.chunks) | compared(reference.scored, scored)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer tasks."""
    tasks = [(prompt, expected) for prompt, expected in request["tasks"]]
    return {
        "answers": answer_tasks(
            tuple(request["files"]), tasks, threads=request["threads"], log=Log(), told=_told
        )
    }


def _chunks(request: dict[str, Any], model: LlamaModel) -> tuple[Chunk, ...]:
    if "chats" in request:
        chats = [(prompt, answer) for prompt, answer in request["chats"]]
        return cut_chats(model, chats, most_tokens=request["most_tokens"])
    return cut_text(
        model,
        request["text"],
        context_tokens=request["context_tokens"],
        most_tokens=request["most_tokens"],
    )


def _load(request: dict[str, Any]) -> tuple[LlamaModel, Library]:
    library = Library("", Log())
    model = LlamaModel(library, tuple(request["files"]))
    if not model.is_generative:
        raise EngineError("the model does not generate text")
    return model, library


def _open(
    request: dict[str, Any], model: LlamaModel, library: Library, chunks: Sequence[Chunk]
) -> tuple[Reader, Distributions]:
    threads = request["threads"]
    reader = Reader(
        library, model, context_tokens=max(len(chunk.tokens) for chunk in chunks), threads=threads
    )
    return reader, Distributions(library, vocabulary=model.vocabulary_tokens, threads=threads)


def _figures(scored: Scored, chunks: Sequence[Chunk]) -> dict[str, Any]:
    value, error = perplexity(scored)
    return {
        "context_tokens": max(len(chunk.tokens) for chunk in chunks),
        "scored_tokens": len(scored.logprobs),
        "perplexity": value,
        "perplexity_error": error,
    }


def main() -> int:
    """Do what standard input asks for and return the exit code."""
    request = json.load(sys.stdin)
    try:
        result = {"measure": _measure, "compare": _compare, "answer": _answer, "collect": _collect}[
            request["do"]
        ](request)
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return DISK_FULL if error.errno in {errno.ENOSPC, errno.EDQUOT} else FAILED
    except MemoryError as error:
        # It has no text as a rule.
        sys.stderr.write(f"{type(error).__name__}\n")
        return FAILED
    _told(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

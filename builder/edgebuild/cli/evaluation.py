"""What models are measured with, as options."""

from collections.abc import Callable
from typing import Any

import click

from edgebuild.cli.options import Session
from edgebuild.cli.tables import render_table
from edgebuild.errors import UsageError
from edgebuild.gates import QualityGates
from edgebuild.model.evaluation.evaluate import MOST_TOKENS
from edgebuild.model.evaluation.inputs import load_tasks, load_text
from edgebuild.model.importance import load_matrix
from edgebuild.quality import Quality, quality_table
from edgebuild.request import EvaluationRequest, ImportanceRequest


def render_qualities(qualities: tuple[Quality, ...]) -> str:
    """Lay figures out for a person, a model a line."""
    header, rows = quality_table(qualities)
    return render_table(header, rows, right=frozenset(range(1, len(header))))


def evaluation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--eval-text`, `--eval-tasks` and `--eval-tokens`."""
    for option in (
        click.option(
            "--eval-tokens",
            type=click.IntRange(min=64),
            default=MOST_TOKENS,
            show_default=True,
            metavar="N",
            help="Read at most so many tokens of the text.",
        ),
        click.option(
            "--eval-tasks",
            metavar="FILE",
            help='Measure exact answers to these tasks: {"prompt": "…", "expected": "…"} a line.',
        ),
        click.option(
            "--eval-text",
            metavar="FILE",
            help="Measure on this text, or on the answers of chats in a .jsonl file. [default: a text that ships with edgebuild]",
        ),
    ):
        function = option(function)
    return function


def importance_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--imatrix` and `--calibration`."""
    for option in (
        click.option(
            "--calibration",
            metavar="FILE",
            help="Text or chats that --imatrix auto reads. [default: a text that ships with edgebuild]",
        ),
        click.option(
            "--imatrix",
            metavar="FILE|auto",
            help="Quantise by this importance matrix of llama.cpp's; auto computes one.",
        ),
    ):
        function = option(function)
    return function


def gather_importance(
    imatrix: str | None, calibration: str | None, *, session: Session
) -> ImportanceRequest | None:
    """Load what the options name.

    Raises:
        UsageError: A text without `auto`, or one that cannot be read.
        ModelError: The file is no importance matrix.
    """
    if calibration is not None and imatrix != "auto":
        raise UsageError("--calibration is for --imatrix auto", hint="add --imatrix auto, or leave it out")
    if imatrix is None:
        return None
    if imatrix != "auto":
        return ImportanceRequest(matrix=load_matrix(session.host.path(imatrix)), text=None)
    text = None if calibration is None else load_text(session.host.path(calibration))
    return ImportanceRequest(matrix=None, text=text)


def gather_evaluation(
    *,
    is_wanted: bool,
    text: str | None,
    tasks: str | None,
    tokens: int,
    gates: QualityGates,
    session: Session,
) -> EvaluationRequest:
    """Load what the options name; a text or tasks that are named are wanted.

    Raises:
        UsageError: A file cannot be read or is of another form.
    """
    host = session.host
    return EvaluationRequest(
        is_wanted=is_wanted or text is not None or tasks is not None,
        text=None if text is None else load_text(host.path(text)),
        tasks=None if tasks is None else load_tasks(host.path(tasks)),
        most_tokens=tokens,
        gates=gates,
    )

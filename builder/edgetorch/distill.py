"""Training a small model to say what a large one says."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgetorch.events import Events, WorkerError
from edgetorch.measure import figures
from edgetorch.models import context_of, load_model, load_tokenizer, prepare
from edgetorch.shards import rewrite_weights
from edgetorch.texts import Material, load_text
from edgetorch.training import Settings, train


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both models, in 32 bit, and the student's tokenizer."""

    teacher: Any
    student: Any
    tokenizer: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillJob:
    """Who learns from whom, and how.

    Attributes:
        teacher: Folder of a checkpoint.
        student: Folder of a checkpoint of the same vocabulary.
        output: Folder to write config.json and weights to.
        state: File that keeps an unfinished training.
        material: Text and tasks.
        settings: Of training.
        threads: Of PyTorch.
    """

    teacher: str
    student: str
    output: str
    state: str
    material: Material
    settings: Settings
    threads: int


def distill(job: DistillJob, *, events: Events) -> dict[str, Any]:
    """Train the student, write it in its own types of numbers, and measure it as written.

    Args:
        job: Who, from whom and how.
        events: Told of the work.

    Returns:
        teacher, before and after (see `figures`), and what training tells of itself.
    """
    prepare(threads=job.threads, seed=job.settings.seed)
    events.phase("load the models")
    pair = _load_pair(job.teacher, job.student)
    questions = job.material.tasks
    longest = job.material.context_tokens
    length = min(context_of(pair.teacher, longest), context_of(pair.student, longest))
    parts = load_text(job.material, pair.tokenizer, context_tokens=length, events=events)

    def measure(model: Any, folder: str) -> dict[str, Any]:
        return figures(
            model, pair.tokenizer, folder=folder, held_out=parts.held_out, tasks=questions, events=events
        )

    events.phase("measure the teacher")
    of_teacher = measure(pair.teacher, job.teacher)
    events.phase("measure the student before")
    before = measure(pair.student, job.student)
    events.phase("train the student")
    trained = train(
        pair.teacher, pair.student, parts.training, job.settings, state=Path(job.state), events=events
    )
    events.phase("write the student")
    _write(pair.student, Path(job.student), Path(job.output), events=events)
    events.phase("measure the student after")
    after = measure(load_model(job.output), job.output)
    return {
        "teacher": of_teacher,
        "before": before,
        "after": after,
        "training": trained,
        "training_tokens": sum(len(row.tokens) - row.first for row in parts.training),
        "held_out_tokens": sum(len(row.tokens) - row.first for row in parts.held_out),
        "tasks": len(questions),
    }


def _load_pair(teacher: str, student: str) -> Pair:
    """Load both models, and refuse two that do not speak of the same tokens."""
    tokenizer, others = load_tokenizer(student), load_tokenizer(teacher)
    ours, theirs = tokenizer.get_vocab(), others.get_vocab()
    if ours != theirs:
        differing = sum(ours.get(token) != theirs.get(token) for token in ours.keys() | theirs.keys())
        raise WorkerError(
            "model",
            f"teacher and student have different vocabularies: {len(theirs)} and {len(ours)} tokens, {differing} of which differ",
            hint="take a student with the teacher's tokenizer, e.g. one that `edgebuild model prune` made of it",
        )
    return Pair(teacher=load_model(teacher), student=load_model(student), tokenizer=tokenizer)


def _write(model: Any, source: Path, output: Path, *, events: Events) -> None:
    """Write the weights under the names, in the types and in as many files as the student came."""
    weights = model.state_dict()

    def trained(name: str, tensor: torch.Tensor) -> torch.Tensor:
        # Old checkpoints hold tables that no model has as weights any more; they stay as they are.
        if name not in weights:
            return tensor
        written = weights[name].to(tensor.dtype)
        if not bool(torch.isfinite(written).all()):
            raise WorkerError(
                "diverged",
                f"{name} holds numbers that {str(tensor.dtype).removeprefix('torch.')} cannot hold",
                hint="train with a smaller --rate",
            )
        return written

    shutil.copyfile(source / "config.json", output / "config.json")
    rewrite_weights(
        source,
        output,
        replace=trained,
        on_file=lambda done, total: events.progress(done, total, "files"),
    )

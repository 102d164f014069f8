"""Distilling: a small checkpoint is trained to say what a large one says on the user's text."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgebuild import __version__
from edgebuild.artifacts.files import remove_tree
from edgebuild.canonical import canonical_json
from edgebuild.errors import UsageError
from edgebuild.host import Host
from edgebuild.model.environment import TorchEnvironment
from edgebuild.model.evaluation.inputs import EvaluationTasks, load_tasks
from edgebuild.model.hashing import file_digest
from edgebuild.model.smaller.draft import Draft, drafted, verify_output
from edgebuild.model.smaller.figures import Figures, figure_rows
from edgebuild.model.smaller.folders import CheckpointFolder, copy_companions, read_checkpoint_folder
from edgebuild.model.smaller.history import Card, Step, markdown_table, read_card, write_card
from edgebuild.model.smaller.text import TextFile, check_text, material
from edgebuild.model.smaller.torch_work import run_torch
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import Seals
from edgebuild.progress import Progress

_STATE_SUFFIX = ".safetensors"
_READ_BESIDE = (".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a student is trained; what the result depends on, besides models and text.

    Attributes:
        steps: Steps in all.
        batch_tokens: Tokens of a step, padding included.
        rate: AdamW's rate at its highest.
        temperature: Both models' logits are divided by it before they are compared.
        teacher_share: Weight of the teacher against the text, from 0 to 1.
        seed: Decides the order of the text.
    """

    steps: int
    batch_tokens: int
    rate: float
    temperature: float
    teacher_share: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRequest:
    """Who learns from whom, and how.

    Attributes:
        teacher: Absolute path of the teacher's folder.
        student: Absolute path of the student's folder.
        output: Absolute path of the folder to write.
        text: Absolute path of the user's text.
        tasks: Absolute path of a file of tasks, or None.
        context_tokens: Length of the longest row.
        settings: How the student is trained.
        save_every: Steps after which an unfinished training is kept.
        restart: Whether an unfinished training of other settings is thrown away.
        replace: Whether a checkpoint that is there already may go.
    """

    teacher: Path
    student: Path
    output: Path
    text: Path
    tasks: Path | None
    context_tokens: int
    settings: TrainingSettings
    save_every: int
    restart: bool
    replace: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What came out.

    Attributes:
        output: The folder written.
        teacher: The teacher.
        before: The student as it was.
        after: The student as it was written, read back.
        first_step: Step at which this run went on; 0 when it began.
        loss: Mean loss of this run's last steps; None when an earlier run had made them all.
        tokens: Tokens that this run read.
        seconds: How long its training took.
        training_tokens: Tokens of the text that answers are learnt from.
        held_out_tokens: Tokens that perplexity was measured on.
        tasks: Number of tasks.
    """

    output: Path
    teacher: Figures
    before: Figures
    after: Figures
    first_step: int
    loss: float | None
    tokens: int
    seconds: float
    training_tokens: int
    held_out_tokens: int
    tasks: int

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Lay the figures of teacher, student before and student after side by side."""
        return figure_rows(
            (self.teacher, self.before, self.after), held_out_tokens=self.held_out_tokens, tasks=self.tasks
        )

    def to_json(self) -> dict[str, Any]:
        """Give what the history tells; what differs from run to run is left out."""
        return {
            "teacher": asdict(self.teacher),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "training_tokens": self.training_tokens,
            "held_out_tokens": self.held_out_tokens,
            "tasks": self.tasks,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    teacher: CheckpointFolder
    student: CheckpointFolder
    text: TextFile
    tasks: EvaluationTasks | None


def distill_model(
    request: DistillRequest,
    *,
    environment: Callable[[], TorchEnvironment],
    host: Host,
    seals: Seals,
    progress: Progress,
) -> Distilled:
    """Train a student and write it.

    An interrupted run keeps its training beside the output; the next one with the same inputs goes on from there.

    Args:
        request: Who, from whom and how.
        environment: Gives the Python with PyTorch.
        host: This machine.
        seals: Remember digests of the models' files.
        progress: Told of the work.

    Raises:
        UsageError: The options make no sense, the text is not enough, the output exists, or another training is unfinished.
        ModelError: A model cannot be used, or they do not go together.
        ToolError: The machine lacks memory or disk, training diverged, or the environment cannot be had.
    """
    verify_output(request.output, replace=request.replace, sources=(request.teacher, request.student))
    inputs = _Inputs(
        teacher=read_checkpoint_folder(request.teacher),
        student=read_checkpoint_folder(request.student),
        text=check_text(request.text),
        tasks=None if request.tasks is None else load_tasks(request.tasks),
    )
    card, of_teacher = read_card(inputs.student.path), read_card(inputs.teacher.path)
    if card.licence != of_teacher.licence:
        progress.note(
            f"the teacher's licence ({of_teacher.licence or 'none stated'}) is not the student's "
            f"({card.licence or 'none stated'}); the student's is written down"
        )
    python = environment()
    with drafted(request.output) as draft:
        key = _key(request, inputs, python, seals=seals, progress=progress)
        state = _state_file(draft, key, request)
        copy_companions(inputs.student.path, draft.folder)
        try:
            told = run_torch(
                _torch_request(request, inputs, draft=draft, state=state, host=host),
                title="distilling",
                environment=python,
                host=host,
                progress=progress,
            )
        except KeyboardInterrupt:
            if state.exists():
                progress.note(
                    f"training is kept in {state.parent}; the same command goes on where it stopped"
                )
            raise
        distilled = _result(request.output, told)
        write_card(
            draft.folder,
            card,
            _step(request, inputs, distilled, student=card, teacher=of_teacher),
            name=request.output.name,
            sources=f"**{card.name(inputs.student.path)}**, trained on the answers of **{of_teacher.name(inputs.teacher.path)}**",
        )
        # Only now: the disk may have been full until here.
        with suppress(FileNotFoundError):
            state.unlink()
    return distilled


def _key(
    request: DistillRequest, inputs: _Inputs, python: TorchEnvironment, *, seals: Seals, progress: Progress
) -> Digest:
    """Name everything that a training depends on, so that another one never goes on from its state."""
    files = {
        role: {
            name: str(file_digest(folder.path / name, seals=seals, progress=progress))
            for name in _files_of(folder)
        }
        for role, folder in (("teacher", inputs.teacher), ("student", inputs.student))
    }
    settings = {name: str(value) for name, value in asdict(request.settings).items()}
    return Digest.of(
        canonical_json(
            {
                "format": 1,
                **files,
                "environment": python.identity,
                "text": str(inputs.text.digest),
                "tasks": None if inputs.tasks is None else str(inputs.tasks.digest),
                "context_tokens": request.context_tokens,
                **settings,
            }
        )
    )


def _files_of(folder: CheckpointFolder) -> list[str]:
    """List the weights and whatever else transformers may read: configuration, tokenizer, chat template."""
    others = (path.name for path in folder.path.iterdir() if path.suffix in _READ_BESIDE and path.is_file())
    return sorted({*folder.weights, *others})


def _state_file(draft: Draft, key: Digest, request: DistillRequest) -> Path:
    """Find the state of this training, and refuse to lose another one's by accident."""
    state = draft.state / f"{key.short}{_STATE_SUFFIX}"
    others = [path for path in draft.state.glob(f"*{_STATE_SUFFIX}") if path != state]
    if request.restart:
        remove_tree(draft.state)
        draft.state.mkdir()
    elif others and not state.exists():
        raise UsageError(
            f"{draft.state} keeps an unfinished training with other models, text or settings, or another PyTorch",
            hint="repeat the command that began it, or throw it away with --restart",
        )
    return state


def _torch_request(
    request: DistillRequest, inputs: _Inputs, *, draft: Draft, state: Path, host: Host
) -> dict[str, object]:
    return {
        "command": "distill",
        "teacher": str(inputs.teacher.path),
        "student": str(inputs.student.path),
        "output": str(draft.folder),
        "state": str(state),
        "material": material(inputs.text, inputs.tasks, context_tokens=request.context_tokens),
        "threads": host.cpu_count,
        "settings": asdict(request.settings) | {"save_every": request.save_every},
    }


def _result(output: Path, told: dict[str, Any]) -> Distilled:
    training = told["training"]
    return Distilled(
        output=output,
        teacher=Figures(**told["teacher"]),
        before=Figures(**told["before"]),
        after=Figures(**told["after"]),
        first_step=training["first_step"],
        loss=training["loss"],
        tokens=training["tokens"],
        seconds=training["seconds"],
        training_tokens=told["training_tokens"],
        held_out_tokens=told["held_out_tokens"],
        tasks=told["tasks"],
    )


def _step(
    request: DistillRequest, inputs: _Inputs, distilled: Distilled, *, student: Card, teacher: Card
) -> Step:
    how = request.settings
    learner, model = student.name(inputs.student.path), teacher.name(inputs.teacher.path)
    document = {
        "edgebuild": __version__,
        "student": learner,
        "teacher": model,
        "teacher_licence": teacher.licence or None,
        "text": {"file": inputs.text.path.name, "digest": str(inputs.text.digest)},
        "context_tokens": request.context_tokens,
        **asdict(how),
        **distilled.to_json(),
    }
    licence = f" (licence: {teacher.licence})" if teacher.licence else ""
    told = (
        f"{learner} was trained on the answers of {model}{licence}: {how.steps:,} steps of "
        f"{how.batch_tokens:,} tokens of `{inputs.text.path.name}`, AdamW at {how.rate:g} with a cosine, temperature "
        f"{how.temperature:g}, {how.teacher_share:g} of the loss from the teacher and the rest from the text, seed {how.seed}."
    )
    table = markdown_table(("", "teacher", "before", "after"), distilled.rows())
    return Step(kind="distill", document=document, text=f"{told}\n\n{table}")

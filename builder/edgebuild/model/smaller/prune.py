"""Pruning: the layers of a checkpoint that matter least on the user's text are left out."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgebuild import __version__
from edgebuild.errors import UsageError
from edgebuild.host import Host
from edgebuild.model.environment import TorchEnvironment
from edgebuild.model.evaluation.inputs import load_tasks
from edgebuild.model.smaller.draft import drafted, verify_output
from edgebuild.model.smaller.figures import Figures, figure_rows
from edgebuild.model.smaller.folders import CheckpointFolder, copy_companions, read_checkpoint_folder
from edgebuild.model.smaller.history import Step, markdown_table, read_card, write_card
from edgebuild.model.smaller.text import TextFile, check_text, material
from edgebuild.model.smaller.torch_work import run_torch
from edgebuild.progress import Progress

MEASURES = {
    "influence": "those which turn their input least (1 - cosine similarity of input and output)",
    "loss": "one after another, each time the one without which the loss is least",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest:
    """What is to be pruned, and how.

    Attributes:
        model: Absolute path of the checkpoint's folder.
        output: Absolute path of the folder to write.
        text: Absolute path of the user's text.
        tasks: Absolute path of a file of tasks, or None.
        drop: Layers to leave out, or None.
        keep: Layers to keep, or None; one of the two is given.
        by: How layers are chosen: "influence" or "loss".
        context_tokens: Length of the longest row.
        sample_tokens: So much of the text is read to measure layers.
        replace: Whether a checkpoint that is there already may go.
    """

    model: Path
    output: Path
    text: Path
    tasks: Path | None
    drop: int | None
    keep: int | None
    by: str
    context_tokens: int
    sample_tokens: int
    replace: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What came out.

    Attributes:
        output: The folder written.
        before: The model as it was.
        after: The model as it was written, read back.
        dropped: Numbers of the layers left out, counted from 0, in the order in which they were chosen.
        influences: Influence of each layer before.
        losses: Loss in nats a token after each layer was left out, where that decided.
        sample_tokens: Tokens that layers were measured on.
        held_out_tokens: Tokens that perplexity was measured on.
        tasks: Number of tasks.
    """

    output: Path
    before: Figures
    after: Figures
    dropped: tuple[int, ...]
    influences: tuple[float, ...]
    losses: tuple[float, ...]
    sample_tokens: int
    held_out_tokens: int
    tasks: int

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Lay the figures before and after side by side."""
        return figure_rows((self.before, self.after), held_out_tokens=self.held_out_tokens, tasks=self.tasks)

    def to_json(self) -> dict[str, Any]:
        """Give what `--json` and the history tell."""
        return {name: value for name, value in asdict(self).items() if name != "output"}


def prune_model(
    request: PruneRequest, *, environment: Callable[[], TorchEnvironment], host: Host, progress: Progress
) -> Pruned:
    """Write a model without its least important layers.

    Everything that can be refused without loading weights is, before the environment is asked for.

    Args:
        request: What and how.
        environment: Gives the Python with PyTorch.
        host: This machine.
        progress: Told of the work.

    Raises:
        UsageError: The options make no sense, the text is not enough, or the output exists.
        ModelError: The model cannot be used.
        ToolError: The machine lacks memory or disk, or the environment cannot be had.
    """
    verify_output(request.output, replace=request.replace, sources=(request.model,))
    model = read_checkpoint_folder(request.model)
    drop = layers_to_drop(model, drop=request.drop, keep=request.keep)
    card = read_card(model.path)
    text = check_text(request.text)
    tasks = None if request.tasks is None else load_tasks(request.tasks)
    python = environment()
    with drafted(request.output) as draft:
        copy_companions(model.path, draft.folder)
        told = run_torch(
            {
                "command": "prune",
                "model": str(model.path),
                "output": str(draft.folder),
                "material": material(text, tasks, context_tokens=request.context_tokens),
                "drop": drop,
                "by": request.by,
                "sample_tokens": request.sample_tokens,
                "threads": host.cpu_count,
            },
            title="pruning",
            environment=python,
            host=host,
            progress=progress,
        )
        pruned = _result(request.output, told)
        name = card.name(model.path)
        step = _step(name, pruned, text=text, by=request.by)
        write_card(draft.folder, card, step, name=request.output.name, sources=f"**{name}**")
    return pruned


def layers_to_drop(model: CheckpointFolder, *, drop: int | None, keep: int | None) -> int:
    """Settle how many layers go.

    Raises:
        UsageError: Neither or both are given, or nothing would be left, or nothing would go.
    """
    if (drop is None) == (keep is None):
        raise UsageError("give either --layers or --keep", hint="--layers N leaves N out, --keep N keeps N")
    count = drop if drop is not None else model.layers - (keep or 0)
    if count < 1:
        raise UsageError(
            f"{model.path} has {model.layers} layers, so that --keep {keep} leaves none out",
            hint=f"keep between 1 and {model.layers - 1}",
        )
    if count >= model.layers:
        raise UsageError(
            f"{model.path} has {model.layers} layers, and {count} cannot be left out",
            hint=f"leave out between 1 and {model.layers - 1}"
            if model.layers > 1
            else "a model has one layer at least",
        )
    return count


def _result(output: Path, told: dict[str, Any]) -> Pruned:
    return Pruned(
        output=output,
        before=Figures(**told["before"]),
        after=Figures(**told["after"]),
        dropped=tuple(told["dropped"]),
        influences=tuple(told["influences"]),
        losses=tuple(told["losses"]),
        sample_tokens=told["sample_tokens"],
        held_out_tokens=told["held_out_tokens"],
        tasks=told["tasks"],
    )


def _step(name: str, pruned: Pruned, *, text: TextFile, by: str) -> Step:
    gone = ", ".join(str(layer) for layer in sorted(pruned.dropped))
    document = {
        "edgebuild": __version__,
        "model": name,
        "by": by,
        "text": {"file": text.path.name, "digest": str(text.digest)},
        **pruned.to_json(),
    }
    told = (
        f"Of the {pruned.before.layers} layers of {name}, {len(pruned.dropped)} were left out: {gone} (counted "
        f"from 0), {MEASURES[by]}, on {pruned.sample_tokens:,} tokens of `{text.path.name}`. Nothing was trained."
    )
    return Step(
        kind="prune",
        document=document,
        text=f"{told}\n\n{markdown_table(('', 'before', 'after'), pruned.rows())}",
    )

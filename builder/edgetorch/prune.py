"""Leaving out the layers that matter least."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetorch.events import Events
from edgetorch.importance import block_influence, choose_by_loss, least_influential
from edgetorch.measure import figures
from edgetorch.models import context_of, load_model, load_tokenizer, prepare
from edgetorch.naming import pruned_config, pruned_name
from edgetorch.shards import rewrite_weights
from edgetorch.texts import Material, load_text, some_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneJob:
    """What is to be pruned, and how.

    Attributes:
        model: Folder of the checkpoint.
        output: Folder to write config.json and weights to.
        material: Text and tasks.
        drop: Layers to leave out.
        by: "influence" or "loss".
        sample_tokens: So much of the text is read to measure layers.
        threads: Of PyTorch.
    """

    model: str
    output: str
    material: Material
    drop: int
    by: str
    sample_tokens: int
    threads: int


def prune(job: PruneJob, *, events: Events) -> dict[str, Any]:
    """Measure layers, write the model without those that matter least, and measure it as written.

    Args:
        job: What and how.
        events: Told of the work.

    Returns:
        before and after (see `figures`), influences, dropped layers, and the loss after each where it was measured.
    """
    prepare(threads=job.threads, seed=0)
    events.phase("load the model")
    tokenizer = load_tokenizer(job.model)
    loaded = load_model(job.model)
    questions = job.material.tasks
    length = context_of(loaded, job.material.context_tokens)
    parts = load_text(job.material, tokenizer, context_tokens=length, events=events)
    events.phase("measure the model before")
    before = figures(
        loaded, tokenizer, folder=job.model, held_out=parts.held_out, tasks=questions, events=events
    )
    events.phase("measure its layers")
    sample = some_rows(parts.training, job.sample_tokens)
    influences = block_influence(loaded, sample, events=events)
    losses: list[float] = []
    if job.by == "loss":
        events.phase("leave layers out, one after another")
        dropped, losses = choose_by_loss(loaded, sample, job.drop, events=events)
    else:
        dropped = least_influential(influences, job.drop)
    keep = [layer for layer in range(before["layers"]) if layer not in dropped]
    del loaded

    events.phase("write the model")
    config = json.loads((Path(job.model) / "config.json").read_text("utf-8"))
    (Path(job.output) / "config.json").write_text(
        json.dumps(pruned_config(config, keep), indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    rewrite_weights(
        Path(job.model),
        Path(job.output),
        rename=lambda name: pruned_name(name, keep),
        on_file=lambda done, total: events.progress(done, total, "files"),
    )
    events.phase("measure the model after")
    after = figures(
        load_model(job.output),
        tokenizer,
        folder=job.output,
        held_out=parts.held_out,
        tasks=questions,
        events=events,
    )
    return {
        "before": before,
        "after": after,
        "influences": influences,
        "dropped": dropped,
        "losses": losses,
        "sample_tokens": sum(len(row.tokens) for row in sample),
        "held_out_tokens": sum(len(row.tokens) - row.first for row in parts.held_out),
        "tasks": len(questions),
    }

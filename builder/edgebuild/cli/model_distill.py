"""`edgebuild model distill`: a small checkpoint learns from a large one."""

import click

from edgebuild.artifacts.store import Store
from edgebuild.cli.options import Session, common_options
from edgebuild.cli.tables import render_table
from edgebuild.model.environment import torch_environment
from edgebuild.model.smaller.distill import Distilled, DistillRequest, TrainingSettings, distill_model


@click.command(name="distill")
@click.option("--teacher", required=True, metavar="DIR", help="Checkpoint to learn from.")
@click.option("--student", required=True, metavar="DIR", help="Checkpoint to train; it is not changed.")
@click.option(
    "--text",
    required=True,
    metavar="FILE",
    help="Text like what the model will see: plain UTF-8, or JSON lines (.jsonl).",
)
@click.option("--output", required=True, metavar="DIR", help="Folder to write.")
@click.option(
    "--tasks",
    metavar="FILE",
    help="JSON lines of prompt and expected; counts exact answers before and after.",
)
@click.option("--steps", type=click.IntRange(1), default=500, show_default=True, metavar="N", help="Steps.")
@click.option(
    "--batch",
    type=click.IntRange(16),
    default=2048,
    show_default=True,
    metavar="TOKENS",
    help="Tokens of a step.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True),
    default=3e-4,
    show_default=True,
    metavar="RATE",
    help="Learning rate at its highest; smaller for larger models.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0.1, 100),
    default=2.0,
    show_default=True,
    metavar="T",
    help="Softens what both models say before it is compared.",
)
@click.option(
    "--teacher-share",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    metavar="SHARE",
    help="Weight of the teacher against the text itself.",
)
@click.option("--seed", type=int, default=1, show_default=True, metavar="N", help="Order of the text.")
@click.option(
    "--context",
    type=click.IntRange(16),
    default=512,
    show_default=True,
    metavar="TOKENS",
    help="Longest piece of text.",
)
@click.option(
    "--save-every",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    metavar="N",
    help="Steps after which the training is kept for a later run.",
)
@click.option("--restart", is_flag=True, help="Throw away an unfinished training.")
@click.option("--force", is_flag=True, help="Replace a checkpoint that is there.")
@common_options
def command(
    session: Session,
    teacher: str,
    student: str,
    text: str,
    output: str,
    tasks: str | None,
    steps: int,
    batch: int,
    rate: float,
    temperature: float,
    teacher_share: float,
    seed: int,
    context: int,
    save_every: int,
    restart: bool,
    force: bool,
) -> None:
    """Train the checkpoint STUDENT to say what TEACHER says on a text.

    Both have the same vocabulary; a student that `edgebuild model prune` made of the teacher has it. An interrupted run
    goes on where it stopped when the same command is given again.
    """
    path = session.host.path
    request = DistillRequest(
        teacher=path(teacher),
        student=path(student),
        output=path(output),
        text=path(text),
        tasks=None if tasks is None else path(tasks),
        context_tokens=context,
        settings=TrainingSettings(
            steps=steps,
            batch_tokens=batch,
            rate=rate,
            temperature=temperature,
            teacher_share=teacher_share,
            seed=seed,
        ),
        save_every=save_every,
        restart=restart,
        replace=force,
    )
    store = Store(session.host.cache_directory, progress=session.progress)
    distilled = distill_model(
        request,
        environment=lambda: torch_environment(host=session.host, store=store, progress=session.progress),
        host=session.host,
        seals=store,
        progress=session.progress,
    )
    session.say(_render(distilled))
    session.give(
        {
            "output": str(distilled.output),
            **distilled.to_json(),
            "training": {
                "steps": steps,
                "first_step": distilled.first_step,
                "loss": distilled.loss,
                "tokens": distilled.tokens,
                "seconds": distilled.seconds,
            },
        }
    )


def _render(distilled: Distilled) -> str:
    return "\n".join(
        [
            render_table(
                ("", "teacher", "student before", "after"), distilled.rows(), right=frozenset({1, 2, 3})
            ),
            f"wrote {distilled.output}",
        ]
    )

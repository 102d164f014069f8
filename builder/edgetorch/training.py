"""The loop that trains a student on a teacher's logits and on the text itself."""

import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from edgetorch.events import STOPPED, Events, WorkerError
from edgetorch.measure import IGNORED, make_batch, wanted_logits
from edgetorch.order import batches_from, cut_batches
from edgetorch.schedule import rate_at
from edgetorch.state import Training, load_state, save_state
from edgetorch.texts import Row

_WEIGHT_DECAY = 0.1
_CLIP_NORM = 1.0
# Logits of teacher and student, their logarithms and gradients: about five such tables are in memory at once.
_LOGITS_AT_ONCE = 1 << 25
_TOLD_EVERY_S = 0.5
_MEAN_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a student is trained.

    Attributes:
        steps: Steps in all.
        batch_tokens: Tokens of a step, padding included.
        rate: AdamW's rate at its highest; it rises over the first twentieth of the steps and falls as a cosine to 0.
        temperature: Both models' logits are divided by it before they are compared.
        teacher_share: Weight of the teacher against the text: 1 is the teacher alone, 0 the text alone.
        save_every: Steps after which the training is kept.
        seed: Decides the order of the rows.
    """

    steps: int
    batch_tokens: int
    rate: float
    temperature: float
    teacher_share: float
    save_every: int
    seed: int


def train(
    teacher: Any, student: Any, rows: Sequence[Row], settings: Settings, *, state: Path, events: Events
) -> dict[str, Any]:
    """Train in place, from where an earlier run was ended.

    Returns:
        The step it went on at, the loss of the last steps, and tokens and seconds of this run.

    Raises:
        WorkerError: The loss is no number any more.
    """
    training = Training(model=student, optimizer=_optimizer(student, settings))
    first = load_state(state, training)
    if first:
        events.note(f"goes on at step {first} of {settings.steps}")
    teacher.requires_grad_(requires_grad=False)
    student.train()
    order = batches_from(
        [len(row.tokens) for row in rows],
        batch_tokens=settings.batch_tokens,
        seed=settings.seed,
        first_step=first,
    )
    pace = _Pace(first=first, settings=settings, events=events)
    with _Stop() as stop:
        for step, chosen in zip(range(first, settings.steps), order, strict=False):
            for group in training.optimizer.param_groups:
                group["lr"] = rate_at(step, steps=settings.steps, highest=settings.rate)
            loss = _step(teacher, training, [rows[index] for index in chosen], settings)
            if not math.isfinite(loss):
                raise WorkerError(
                    "diverged",
                    f"training diverged at step {step + 1}: the loss is {loss}",
                    hint="train with a smaller --rate",
                )
            done = step + 1
            pace.tell(done, loss, tokens=sum(len(rows[index].tokens) for index in chosen))
            if done % settings.save_every == 0 or stop.is_wanted or done == settings.steps:
                save_state(state, training, step=done)
            if stop.is_wanted:
                sys.exit(STOPPED)
    student.eval()
    return {"first_step": first} | pace.summary()


def _optimizer(student: Any, settings: Settings) -> torch.optim.AdamW:
    parameters = list(student.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": _WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.rate,
        betas=(0.9, 0.95),
    )


def _step(teacher: Any, training: Training, rows: Sequence[Row], settings: Settings) -> float:
    """Make one step on a batch and return its loss; a batch with many logits is taken in parts, which changes nothing."""
    training.optimizer.zero_grad()
    targets = sum(len(row.tokens) - row.first for row in rows)
    total = 0.0
    for part in _parts(rows, vocabulary=int(training.model.config.vocab_size)):
        loss = _loss(teacher, training.model, part, settings) / targets
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), _CLIP_NORM)
    training.optimizer.step()
    return total


def _parts(rows: Sequence[Row], *, vocabulary: int) -> Iterator[Sequence[Row]]:
    for start, stop in cut_batches([len(row.tokens) for row in rows], max(1, _LOGITS_AT_ONCE // vocabulary)):
        yield rows[start:stop]


def _loss(teacher: Any, student: Any, rows: Sequence[Row], settings: Settings) -> Tensor:
    """Add up the loss over all targets, in nats.

    The divergence is multiplied by the temperature squared, so that its gradients keep their size.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2.
    """
    batch = make_batch(rows)
    said = wanted_logits(student, batch)
    loss = said.new_zeros(())
    if settings.teacher_share > 0:
        with torch.no_grad():
            taught = wanted_logits(teacher, batch)
        # Tables are padded to round sizes, each model's to its own; no token has a number beyond the smaller one.
        size = min(said.shape[-1], taught.shape[-1])
        divergence = functional.kl_div(
            functional.log_softmax(said[:, :size] / settings.temperature, dim=-1),
            functional.log_softmax(taught[:, :size] / settings.temperature, dim=-1),
            reduction="sum",
            log_target=True,
        )
        loss = loss + settings.teacher_share * settings.temperature**2 * divergence
    if settings.teacher_share < 1:
        wanted = batch.targets[batch.targets != IGNORED]
        loss = loss + (1 - settings.teacher_share) * functional.cross_entropy(said, wanted, reduction="sum")
    return loss


class _Pace:
    """Tells how far training is, how fast, and how long it will take."""

    def __init__(self, *, first: int, settings: Settings, events: Events) -> None:
        self._first = first
        self._steps = settings.steps
        self._events = events
        self._began = self._told = time.monotonic()
        self._tokens = 0
        self._losses: list[float] = []

    def tell(self, done: int, loss: float, *, tokens: int) -> None:
        """Take one step into account."""
        now = time.monotonic()
        self._tokens += tokens
        self._losses = [*self._losses[1 - _MEAN_STEPS :], loss]
        if now - self._told < _TOLD_EVERY_S and done < self._steps:
            return
        self._told = now
        elapsed_s = max(now - self._began, 1e-6)
        self._events.step(
            {
                "step": done,
                "steps": self._steps,
                "loss": self._mean_loss(),
                "tokens_per_s": self._tokens / elapsed_s,
                "left_s": elapsed_s / (done - self._first) * (self._steps - done),
            }
        )

    def summary(self) -> dict[str, Any]:
        """Give the figures of the whole run."""
        return {
            "loss": self._mean_loss(),
            "tokens": self._tokens,
            "seconds": time.monotonic() - self._began,
        }

    def _mean_loss(self) -> float | None:
        return sum(self._losses) / len(self._losses) if self._losses else None


class _Stop:
    """While the context lasts, SIGTERM asks to stop after the step under way instead of stopping at once."""

    def __init__(self) -> None:
        self.is_wanted = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._want)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _want(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.is_wanted = True

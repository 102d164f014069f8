"""An unfinished training, kept in one safetensors file that is renamed into place: a killed run leaves the one before."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgetorch.events import WorkerError

# What AdamW keeps of each parameter.
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What changes while a model is trained.

    Attributes:
        model: Of transformers.
        optimizer: AdamW over its parameters.
    """

    model: Any
    optimizer: torch.optim.AdamW


def save_state(path: Path, training: Training, *, step: int) -> None:
    """Keep everything that is needed to go on after `step` steps."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in training.model.named_parameters():
        tensors[f"parameter/{name}"] = parameter.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = training.optimizer.state[parameter][moment]
    partial = path.with_name(f"{path.name}.part")
    # The step lies in the same file, so that neither is ever there without the other.
    save_file(tensors, partial, metadata={"step": str(step)})
    with partial.open("rb") as file:
        # Else a power failure may leave the new name with nothing in it.
        os.fsync(file.fileno())
    partial.replace(path)


def load_state(path: Path, training: Training) -> int:
    """Take up a training that was kept, and return the steps it had made; 0 when nothing was kept.

    Raises:
        WorkerError: The file is damaged.
    """
    if not path.is_file():
        return 0
    try:
        return _take_up(path, training)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WorkerError(
            "file",
            f"{path} is damaged: the unfinished training cannot go on",
            hint="throw it away with --restart",
        ) from error


def _take_up(path: Path, training: Training) -> int:
    with safe_open(path, framework="pt") as opened, torch.no_grad():
        step = int(opened.metadata()["step"])
        for name, parameter in training.model.named_parameters():
            parameter.copy_(opened.get_tensor(f"parameter/{name}"))
            training.optimizer.state[parameter] = {"step": torch.tensor(float(step))} | {
                moment: opened.get_tensor(f"{moment}/{name}") for moment in _MOMENTS
            }
    return step

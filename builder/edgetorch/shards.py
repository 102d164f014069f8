"""Reading and writing checkpoints tensor by tensor: never more than one file of weights in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

_INDEX = "model.safetensors.index.json"


def weights_files(folder: Path) -> tuple[str, ...]:
    """List the files that hold the weights, as the index names them, else the single file."""
    if (folder / _INDEX).is_file():
        named: dict[str, str] = json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"]
        return tuple(sorted(set(named.values())))
    return ("model.safetensors",)


def rewrite_weights(
    source: Path,
    destination: Path,
    *,
    rename: Callable[[str], str | None] | None = None,
    replace: Callable[[str, Any], Any] | None = None,
    on_file: Callable[[int, int], None],
) -> None:
    """Copy weights file by file, with changes; types of numbers stay unless `replace` changes them.

    Args:
        source: Folder of a checkpoint.
        destination: Folder to write to.
        rename: Gives a tensor's new name, or None to leave it out.
        replace: Gives what is written instead of a tensor; called with its name before.
        on_file: Told how many files of how many are written.
    """
    kept: list[tuple[str, dict[str, str]]] = []
    for file in weights_files(source):
        with safe_open(source / file, framework="pt") as opened:
            names = {old: new for old in opened.keys() if (new := rename(old) if rename else old) is not None}  # noqa: SIM118 - no mapping
        if names:
            kept.append((file, names))
    places: dict[str, str] = {}
    total_bytes = 0
    for number, (file, names) in enumerate(kept, 1):
        target = "model.safetensors" if len(kept) == 1 else f"model-{number:05}-of-{len(kept):05}.safetensors"
        with safe_open(source / file, framework="pt") as opened:
            tensors = {new: opened.get_tensor(old) for old, new in names.items()}
        if replace:
            tensors = {new: replace(old, tensors[new]) for old, new in names.items()}
        # save_file lets nobody else read what it makes; a file that is there first gives the mode that the user wants.
        (destination / target).touch()
        mode = (destination / target).stat().st_mode
        save_file(tensors, destination / target, metadata={"format": "pt"})
        (destination / target).chmod(mode)
        total_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        places |= dict.fromkeys(tensors, target)
        on_file(number, len(kept))
    if len(kept) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(places.items()))}
        (destination / _INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")

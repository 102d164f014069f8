"""What a model is called inside when layers are gone: names of tensors, entries of config.json. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_LAYER = re.compile(r"^(model\.layers\.)(\d+)(\..+)$")


def pruned_name(name: str, keep: Sequence[int]) -> str | None:
    """Name a tensor in a model that keeps only some layers; None for one that goes.

    Args:
        name: Its name before.
        keep: Numbers of the layers that stay, rising.
    """
    found = _LAYER.match(name)
    if found is None:
        return name
    layer = int(found[2])
    return f"{found[1]}{keep.index(layer)}{found[3]}" if layer in keep else None


def pruned_config(config: Mapping[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    """Say in config.json that only some layers are left."""
    changed = dict(config) | {"num_hidden_layers": len(keep)}
    if isinstance(config.get("layer_types"), list):
        changed["layer_types"] = [config["layer_types"][layer] for layer in keep]
    if isinstance(config.get("max_window_layers"), int):
        # Qwen's layers from this number on attend to a window only.
        changed["max_window_layers"] = sum(layer < config["max_window_layers"] for layer in keep)
    return changed

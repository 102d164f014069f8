"""Checkpoints that can be made smaller: what is read of them without loading weights, and what is copied beside new ones."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from edgebuild.errors import ModelError
from edgebuild.model.checkpoint import (
    CONFIG,
    INDEX,
    find_checkpoint,
    parse_object,
    read_index,
    read_quantization,
    read_settings,
)

# Llama's layout of layers and names of tensors; whatever else they differ in is transformers' to know.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# Never weights, and never code: a folder can hold both.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICEN[CS]E*",
    "COPYING*",
    "NOTICE*",
    "USE_POLICY*",
)
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFolder:
    """A checkpoint on this machine.

    Attributes:
        path: Absolute path of the folder.
        layers: Number of layers.
        weights: Names of the files that hold the weights, sorted.
    """

    path: Path
    layers: int
    weights: tuple[str, ...]


def read_checkpoint_folder(path: Path) -> CheckpointFolder:
    """Look at a checkpoint without loading it.

    Args:
        path: Absolute path of its folder.

    Raises:
        ModelError: It is none, is incomplete, quantised, or of another architecture.
    """
    try:
        files = [item.name for item in path.iterdir() if item.is_file()]
    except NotADirectoryError as error:
        raise ModelError(
            f"{path} is no folder",
            hint="give the folder of a checkpoint: config.json, safetensors, tokenizer",
        ) from error
    except FileNotFoundError as error:
        raise ModelError(
            f"{path}: no such folder",
            hint="give the folder of a checkpoint: config.json, safetensors, tokenizer",
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", hint="check its permissions") from error
    if any(name.endswith(".gguf") for name in files) and CONFIG not in files:
        raise ModelError(
            f"{path} holds a GGUF file, and this works on checkpoints",
            hint="give the folder that it was converted from: config.json, safetensors, tokenizer",
        )
    found = find_checkpoint(files, place=str(path))
    raw = read_settings(path / CONFIG)
    config = parse_object(raw, CONFIG, place=str(path))
    _verify_architecture(config, path)
    _verify_not_quantized(raw, config, files, str(path))
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise ModelError(
            f"{path / CONFIG}: num_hidden_layers is {layers!r}, no number of layers",
            hint="check that the folder is whole, as its source has it",
        )
    return CheckpointFolder(
        path=path, layers=layers, weights=_weights(path, files, has_index=found.has_index)
    )


def _verify_architecture(config: Mapping[str, Any], path: Path) -> None:
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path} is of the architecture {architecture or 'unknown'}, which edgebuild cannot make smaller",
            hint=f"it can for {', '.join(ARCHITECTURES)}",
        )


def _verify_not_quantized(raw: bytes, config: Mapping[str, Any], files: Collection[str], place: str) -> None:
    # Some that the converter can widen too: training cannot.
    if read_quantization(raw, files, place=place) or config.get("quantization_config") is not None:
        raise ModelError(
            f"{place} is quantised already (quantization_config in config.json)",
            hint="take the checkpoint in 16 or 32 bit; edgebuild quantises at the end",
        )


def _weights(path: Path, files: Collection[str], *, has_index: bool) -> tuple[str, ...]:
    if has_index:
        return read_index(read_settings(path / INDEX), files, place=str(path))
    # transformers takes several files by their index only.
    if _WEIGHTS not in files:
        raise ModelError(
            f"{path} holds neither {_WEIGHTS} nor {INDEX}",
            hint="check that the folder is whole, as its source has it",
        )
    return (_WEIGHTS,)


def read_json_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON object that lies beside a model.

    Raises:
        ModelError: The file cannot be read or holds something else.
    """
    return parse_object(read_settings(path), path.name, place=str(path.parent))


def copy_companions(source: Path, destination: Path) -> None:
    """Copy what belongs to a model besides config.json and weights: tokenizer, generation settings, licence.

    Raises:
        OSError: A file cannot be read or written.
    """
    for path in sorted(source.iterdir()):
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in _COMPANIONS):
            shutil.copyfile(path, destination / path.name)

"""Checkpoints that can be made smaller: what is read of them without loading weights, and what is copied beside new ones."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from edgebuild.errors import ModelError
from edgebuild.model.checkpoint import find_checkpoint

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
_INDEX = "model.safetensors.index.json"


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
    if any(name.endswith(".gguf") for name in files) and "config.json" not in files:
        raise ModelError(
            f"{path} holds a GGUF file, and this works on checkpoints",
            hint="give the folder that it was converted from: config.json, safetensors, tokenizer",
        )
    find_checkpoint(files, place=str(path))
    config = read_json_object(path / "config.json")
    _verify_kind(config, path)
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise ModelError(
            f"{path / 'config.json'}: num_hidden_layers is {layers!r}, no number of layers",
            hint="check that the folder is whole, as its source has it",
        )
    return CheckpointFolder(path=path, layers=layers, weights=_weights(path, files))


def _verify_kind(config: Mapping[str, Any], path: Path) -> None:
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path} is of the architecture {architecture or 'unknown'}, which edgebuild cannot make smaller",
            hint=f"it can for {', '.join(ARCHITECTURES)}",
        )
    if config.get("quantization_config") is not None:
        raise ModelError(
            f"{path} is quantised already (quantization_config in config.json)",
            hint="take the checkpoint in 16 or 32 bit; edgebuild quantises at the end",
        )


def _weights(path: Path, files: list[str]) -> tuple[str, ...]:
    if _INDEX not in files:
        if "model.safetensors" not in files:
            raise ModelError(
                f"{path} holds neither model.safetensors nor {_INDEX}",
                hint="check that the folder is whole, as its source has it",
            )
        return ("model.safetensors",)
    places = read_json_object(path / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ModelError(
            f"{path / _INDEX}: weight_map is missing or wrong",
            hint="check that the folder is whole, as its source has it",
        )
    named = tuple(sorted(set(places.values())))
    if missing := [file for file in named if file not in files]:
        raise ModelError(
            f"{path} lacks {len(missing)} of {len(named)} files of weights, e.g. {missing[0]}",
            hint="fetch the whole folder as its source has it",
        )
    return named


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: The file cannot be read or holds something else.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror}", hint="check the file and its permissions"
        ) from error
    except ValueError as error:
        raise ModelError(
            f"{path} is no JSON: {error}", hint="check that the folder is whole, as its source has it"
        ) from error
    if not isinstance(document, dict):
        raise ModelError(
            f"{path} holds no JSON object", hint="check that the folder is whole, as its source has it"
        )
    return document


def copy_companions(source: Path, destination: Path) -> None:
    """Copy what belongs to a model besides config.json and weights: tokenizer, generation settings, licence.

    Raises:
        OSError: A file cannot be read or written.
    """
    for path in sorted(source.iterdir()):
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in _COMPANIONS):
            shutil.copyfile(path, destination / path.name)

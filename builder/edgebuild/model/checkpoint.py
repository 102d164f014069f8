"""Hugging Face checkpoints: recognised by the names of their files, and judged by their configuration before anything large is read.

Nothing of them is ever run: no code that comes with them, and no pickle is opened.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.errors import ModelError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
# Configuration, tokenizer and card are small; a large one is none.
SETTINGS_MAX_BYTES = 100 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_SETTINGS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_CARD = "README.md"
_PART = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.safetensors$")
_WHOLE_HINT = "give the whole folder as the hub has it"
_ORIGINAL_HINT = "take the 16-bit checkpoint that it was made from: edgebuild quantises it to fit; or a GGUF file of this model"
# What the converter of this llama.cpp widens to 16 bit or keeps (conversion/base.py, dequant_model and prepare_tensors;
# conversion/gpt_oss.py): a test compares. "" stands for none.
READABLE_METHODS = frozenset({"", "bitnet", "compressed-tensors", "fp8", "gptq", "modelopt", "mxfp4"})
_GPTQ_BITS = (2, 4, 8)
_PACKED_FORMATS = frozenset(
    {
        "float-quantized",
        "int-quantized",
        "naive-quantized",
        "pack-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
        "mixed-precision",
    }
)
# What quantisers of old left beside a config.json that says nothing; the converter does not know it.
_OLD_METHODS = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """Which files of a folder or repository are the checkpoint.

    Attributes:
        settings: Names of configuration, tokenizer, card and, if there is one, the weights' index; sorted.
        weights: Names of the safetensors files, sorted; with an index it decides (`read_index`).
        has_index: Whether an index says which tensor lies where.
    """

    settings: tuple[str, ...]
    weights: tuple[str, ...]
    has_index: bool


def find_checkpoint(files: Collection[str], *, place: str) -> CheckpointFiles:
    """Recognise a checkpoint by the names of the files at the top.

    Args:
        files: Names.
        place: What is looked into, for messages.

    Raises:
        ModelError: It is none, lacks something, or holds pickled weights only.
    """
    tensors = sorted(name for name in files if name.endswith(".safetensors") and "/" not in name)
    if not tensors:
        raise _no_weights(files, place)
    if CONFIG not in files:
        raise ModelError(
            f"{place} holds safetensors without config.json, so nobody can tell what model they are",
            hint=_WHOLE_HINT,
        )
    weights = tuple(name for name in tensors if name.startswith("model"))
    has_index = INDEX in files
    if not weights and not has_index:
        raise ModelError(
            f"{place} holds no model.safetensors, but {tensors[0]}",
            hint="give the language model itself; an adapter is first merged into its model",
        )
    if not any(name in _TOKENIZERS for name in files):
        raise ModelError(
            f"{place} holds no tokenizer",
            hint="add the tokenizer's files (tokenizer.json or tokenizer.model) beside the weights",
        )
    settings = tuple(
        sorted(name for name in files if "/" not in name and (name.endswith(_SETTINGS) or name == _CARD))
    )
    if not has_index:
        _verify_parts(weights, place)
    return CheckpointFiles(settings=settings, weights=weights, has_index=has_index)


def verify_settings_size(path: Path) -> None:
    """Refuse a file of settings that is too large for one, without reading it.

    Raises:
        ModelError: It is too large, or cannot be looked at.
    """
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise _no_access(path, error) from error
    if size_bytes > SETTINGS_MAX_BYTES:
        raise ModelError(
            f"{path} is too large for a model's settings", hint="move it out of the model's folder"
        )


def read_settings(path: Path) -> bytes:
    """Read a file of settings.

    Raises:
        ModelError: It is too large for one, or cannot be read.
    """
    verify_settings_size(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _no_access(path, error) from error


def read_index(raw: bytes, files: Collection[str], *, place: str) -> tuple[str, ...]:
    """Return the names of the files that an index spreads the weights over, sorted.

    Args:
        raw: The index.
        files: What is there.
        place: Where, for messages.

    Raises:
        ModelError: It is no index, or a file is missing.
    """
    document = parse_object(raw, INDEX, place=place)
    named = document.get("weight_map")
    if (
        not isinstance(named, dict)
        or not named
        or not all(
            isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in named.values()
        )
    ):
        raise ModelError(f"{place}: {INDEX} names no safetensors files", hint=_WHOLE_HINT)
    weights = tuple(sorted(set(named.values())))
    missing = [name for name in weights if name not in files]
    if missing:
        raise ModelError(
            f"{place}: {INDEX} names {missing[0]}, which is not there ({len(missing)} of {len(weights)} files are missing)",
            hint=_WHOLE_HINT,
        )
    return weights


def read_quantization(raw: bytes, files: Collection[str], *, place: str) -> str:
    """Judge a configuration: refuse what the converter cannot read, and name how the weights are quantised already.

    Args:
        raw: config.json.
        files: What is there.
        place: Where, for messages.

    Returns:
        E.g. "gptq" or "fp8"; "" for weights in 16 or 32 bit.

    Raises:
        ModelError: It is no configuration, or of weights that cannot be read.
    """
    config = parse_object(raw, CONFIG, place=place)
    inner = config.get("text_config")
    inner = inner if isinstance(inner, dict) else {}
    if not (config.get("architectures") or inner.get("architectures") or "ssm_cfg" in config):
        raise ModelError(
            f"{place}: config.json names no architecture",
            hint="give the config.json that the model was saved with, as transformers writes it",
        )
    stated = inner.get("quantization_config") or config.get("quantization_config")
    if stated is None:
        for name, method in _OLD_METHODS.items():
            if name in files:
                raise _unreadable(place, method)
        return ""
    if not isinstance(stated, dict):
        raise ModelError(f"{place}: quantization_config of config.json is no object", hint=_WHOLE_HINT)
    method = str(stated.get("quant_method") or "").lower()
    if method not in READABLE_METHODS:
        raise _unreadable(place, method)
    if method == "gptq" and stated.get("bits") not in _GPTQ_BITS:
        raise _unreadable(place, f"gptq with {stated.get('bits')} bits")
    if method == "compressed-tensors" and stated.get("format") not in _PACKED_FORMATS:
        raise _unreadable(place, f"compressed-tensors in the format {stated.get('format')}")
    return method


def parse_object(raw: bytes, name: str, *, place: str) -> Mapping[str, Any]:
    """Parse a file of settings that is a JSON object.

    Args:
        raw: The file's bytes.
        name: Its name, for messages.
        place: Where it lies, for messages.

    Raises:
        ModelError: It is something else.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{place}: {name} is no JSON: {error}", hint=_WHOLE_HINT) from error
    if not isinstance(document, dict):
        raise ModelError(f"{place}: {name} is no JSON object", hint=_WHOLE_HINT)
    return document


def _no_access(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path}: cannot be read: {error.strerror}", hint="check its permissions")


def _verify_parts(weights: tuple[str, ...], place: str) -> None:
    """Without an index, the names tell how many files there should be."""
    for found in filter(None, map(_PART.search, weights)):
        stem, count = found.string[: found.start()], int(found[2])
        for number in range(1, count + 1):
            if (name := f"{stem}-{number:05d}-of-{count:05d}.safetensors") not in weights:
                raise ModelError(f"{place}: {name} is not there", hint=_WHOLE_HINT)


def _unreadable(place: str, how: str) -> ModelError:
    return ModelError(
        f"{place} is quantised already, by {how or 'a method that it does not name'}, which llama.cpp's converter does not read",
        hint=_ORIGINAL_HINT,
    )


def _no_weights(files: Collection[str], place: str) -> ModelError:
    pickles = sorted(name for name in files if name.endswith(_PICKLES))
    if pickles:
        return ModelError(
            f"{place} holds pickled weights only ({pickles[0]}), which can run any code when they are loaded and are never opened",
            hint="take a revision with safetensors, or a GGUF file of this model",
        )
    return ModelError(
        f"{place} holds no model: neither GGUF nor safetensors files",
        hint="give a .gguf file, or a folder or repository that holds one",
    )

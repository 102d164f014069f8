"""Hugging Face checkpoints: recognised by the names of their files. Nothing is loaded, and pickles never are."""

from collections.abc import Collection
from dataclasses import dataclass

from edgebuild.errors import ModelError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a folder or repository of Hugging Face's form holds.

    Attributes:
        config: Name of the model's configuration.
        weights: Names of the safetensors files, sorted.
        tokenizer: Names of the tokenizer's files, sorted.
    """

    config: str
    weights: tuple[str, ...]
    tokenizer: tuple[str, ...]


def find_checkpoint(files: Collection[str], *, place: str) -> Checkpoint:
    """Recognise a checkpoint by the names of the files at the top.

    Args:
        files: Names.
        place: What is looked into, for messages.

    Raises:
        ModelError: It is none, lacks something, or holds pickled weights only.
    """
    weights = tuple(sorted(name for name in files if name.endswith(".safetensors")))
    if not weights:
        pickles = sorted(name for name in files if name.endswith(_PICKLES))
        if pickles:
            raise ModelError(
                f"{place} holds pickled weights only ({pickles[0]}), which can run any code when they are loaded and are never opened",
                hint="take a revision with safetensors, or a GGUF file of this model",
            )
        raise ModelError(
            f"{place} holds no model: neither GGUF nor safetensors files",
            hint="give a .gguf file, or a folder or repository that holds one",
        )
    if "config.json" not in files:
        raise ModelError(
            f"{place} holds safetensors without config.json, so nobody can tell what model they are",
            hint="give the whole folder as the hub has it",
        )
    tokenizer = tuple(sorted(name for name in files if name in _TOKENIZERS or name == "merges.txt"))
    if not any(name in _TOKENIZERS for name in tokenizer):
        raise ModelError(
            f"{place} holds no tokenizer",
            hint="add the tokenizer's files (tokenizer.json or tokenizer.model) beside the weights",
        )
    return Checkpoint(config="config.json", weights=weights, tokenizer=tokenizer)


def conversion_missing(place: str) -> ModelError:
    """Make the error for a checkpoint, which is understood and cannot be used yet."""
    return ModelError(
        f"{place} is a Hugging Face checkpoint (safetensors), and edgebuild does not convert those yet",
        hint="convert it with llama.cpp's convert_hf_to_gguf.py --outtype f16 and give the .gguf file, or take a GGUF repository of this model",
    )

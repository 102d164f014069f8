"""Loading models and tokenizers from folders: no network, no pickles, no code of theirs."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgetorch.events import WorkerError
from edgetorch.shards import weights_files


def prepare(*, threads: int, seed: int) -> None:
    """Make PyTorch repeat itself: fixed threads, seeds and algorithms."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_model(folder: str) -> Any:
    """Load a model in 32 bit, ready to be asked.

    Raises:
        WorkerError: It is damaged, or its files do not belong together.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        # transformers, tokenizers and safetensors raise whatever they like for a damaged folder.
        raise WorkerError(
            "model",
            f"{folder} cannot be loaded: {_first_line(error)}",
            hint="check that the folder is whole, as its source has it",
        ) from error
    if found["missing_keys"] or found["mismatched_keys"]:
        names = sorted(str(name) for name in [*found["missing_keys"], *found["mismatched_keys"]])
        raise WorkerError(
            "model",
            f"{folder}: {len(names)} tensors are missing or of another shape than config.json says, e.g. {names[0]}",
            hint="check that the folder is whole, as its source has it",
        )
    return model.eval()


def load_tokenizer(folder: str) -> Any:
    """Load a tokenizer.

    Raises:
        WorkerError: It is damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise WorkerError(
            "model",
            f"the tokenizer of {folder} cannot be loaded: {_first_line(error)}",
            hint="check that the tokenizer's files are whole, as their source has them",
        ) from error


def context_of(model: Any, wanted_tokens: int) -> int:
    """Return the length of the longest row: what is wanted, or what the model was trained for if that is less."""
    return min(wanted_tokens, int(model.config.max_position_embeddings))


def count_parameters(model: Any) -> int:
    """Count parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_bytes(folder: str) -> int:
    """Add up the weights' files; a folder can hold the same weights in other files too."""
    return sum((Path(folder) / file).stat().st_size for file in weights_files(Path(folder)))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

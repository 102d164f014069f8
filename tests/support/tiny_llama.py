"""Small random checkpoints of Llama's family, written by hand: the demo model's tokenizer, weights from a seed."""

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebuild.model.source import demo_model_path

DEMO = demo_model_path().parent / "hf"
VOCABULARY = 512
_HIDDEN, _INNER, _HEADS, _HEAD = 32, 64, 2, 16
_KINDS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor as it lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """Read all safetensors files of a folder."""
    tensors: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        begin = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:begin]).items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            assert name not in tensors, f"{name} is in two files"
            tensors[name] = StoredTensor(
                dtype=entry["dtype"], shape=tuple(entry["shape"]), data=raw[begin + first : begin + last]
            )
    return tensors


def write_tiny_llama(
    folder: Path,
    *,
    kind: str = "llama",
    layers: int = 4,
    idle: Collection[int] = (),
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write a checkpoint.

    Args:
        folder: Made.
        kind: "llama", "mistral", "qwen2" or "qwen3".
        layers: Number of layers.
        idle: Layers that hand on what they are given, as it is.
        shards: Files that the weights are spread over.
        seed: Of the weights.
    """
    folder.mkdir(parents=True)
    document: dict[str, Any] = {
        "architectures": [_KINDS[kind]],
        "model_type": kind,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 1,
        "head_dim": _HEAD,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "torch_dtype": "float16",
    }
    if kind.startswith("qwen"):
        document |= {"layer_types": ["full_attention"] * layers, "max_window_layers": layers}
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nmodel_name: tiny\n---\n# tiny\n")
    (folder / "LICENSE").write_text("words of a licence\n")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('this must never run')\n")
    for name in _TOKENIZER:
        shutil.copyfile(DEMO / name, folder / name)
    _write_weights(folder, _weights(kind, layers, idle, seed), shards)
    return folder


def _weights(kind: str, layers: int, idle: Collection[int], seed: int) -> dict[str, npt.NDArray[np.float16]]:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float16]:
        return rng.normal(0, 0.15, (rows, columns)).astype(np.float16)

    weights = {"model.embed_tokens.weight": matrix(VOCABULARY, _HIDDEN)}
    for layer in range(layers):
        place = f"model.layers.{layer}"
        rows = {"q_proj": _HEADS * _HEAD, "k_proj": _HEAD, "v_proj": _HEAD}
        for name, size in rows.items():
            weights[f"{place}.self_attn.{name}.weight"] = matrix(size, _HIDDEN)
            if kind == "qwen2":
                weights[f"{place}.self_attn.{name}.bias"] = matrix(1, size)[0]
        if kind == "qwen3":
            weights |= {f"{place}.self_attn.{n}_norm.weight": np.ones(_HEAD, np.float16) for n in "qk"}
        factor = np.float16(0 if layer in idle else 1)
        weights[f"{place}.self_attn.o_proj.weight"] = matrix(_HIDDEN, _HEADS * _HEAD) * factor
        weights[f"{place}.mlp.gate_proj.weight"] = matrix(_INNER, _HIDDEN)
        weights[f"{place}.mlp.up_proj.weight"] = matrix(_INNER, _HIDDEN)
        weights[f"{place}.mlp.down_proj.weight"] = matrix(_HIDDEN, _INNER) * factor
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{place}.{name}.weight"] = np.ones(_HIDDEN, np.float16)
    weights["model.norm.weight"] = np.ones(_HIDDEN, np.float16)
    return weights


def _write_weights(folder: Path, weights: Mapping[str, npt.NDArray[np.float16]], shards: int) -> None:
    names = list(weights)
    parts = [names[len(names) * part // shards : len(names) * (part + 1) // shards] for part in range(shards)]
    places = {}
    for number, part in enumerate(parts, 1):
        file = "model.safetensors" if shards == 1 else f"model-{number:05}-of-{shards:05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in part:
            begin, end = end, end + weights[name].nbytes
            header[name] = {
                "dtype": "F16",
                "shape": list(weights[name].shape),
                "data_offsets": [begin, end],
            }
            places[name] = file
        head = json.dumps(header).encode()
        data = b"".join(weights[name].tobytes() for name in part)
        (folder / file).write_bytes(len(head).to_bytes(8, "little") + head + data)
    if shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

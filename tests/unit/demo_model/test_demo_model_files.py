"""The committed model: both forms hold the same weights, vocabulary and chat template."""

import json
import struct
from functools import cache
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.demo_model.modules import FOLDER

HF = FOLDER / "hf"
GGUF = FOLDER / "edge-alert-4m.F16.gguf"
GGUF_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@cache
def config() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((HF / "config.json").read_text())
    return document


@cache
def hf_tensors() -> dict[str, npt.NDArray[np.float16]]:
    """Read model.safetensors: 8 bytes of header length, JSON header, data (safetensors' README, "Format")."""
    data = (HF / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    found = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F16", name
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(data[begin:end], dtype="<f2").reshape(entry["shape"])
    return found


@cache
def reader() -> gguf.GGUFReader:
    return gguf.GGUFReader(GGUF)


def field(name: str) -> Any:
    found = reader().get_field(name)
    assert found is not None, name
    return found.contents()


def test_sizes_and_parameters() -> None:
    assert GGUF.stat().st_size <= 8_000_000
    assert (HF / "model.safetensors").stat().st_size <= 8_000_000
    assert 3_000_000 <= sum(tensor.size for tensor in hf_tensors().values()) <= 4_000_000
    assert config()["hidden_size"] % 256 == 0
    assert config()["intermediate_size"] % 256 == 0


def test_gguf_says_what_it_is() -> None:
    assert field("general.architecture") == "llama"
    assert field("general.name") == "edge-alert-4m"
    assert field("general.license") == "cc0-1.0"
    assert "sensor readings" in field("general.description")
    assert field("general.file_type") == gguf.LlamaFileType.MOSTLY_F16


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("context_length", "max_position_embeddings"),
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("rope.freq_base", "rope_theta"),
        ("vocab_size", "vocab_size"),
    ],
)
def test_gguf_has_the_shape_of_the_config(key: str, name: str) -> None:
    assert field(f"llama.{key}") == config()[name]


def test_gguf_has_the_vocabulary_and_template() -> None:
    tokenizer = json.loads((HF / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((HF / "tokenizer_config.json").read_text())
    tokens = field("tokenizer.ggml.tokens")
    assert {token: index for index, token in enumerate(tokens)} == tokenizer["model"]["vocab"]
    assert len(tokens) == config()["vocab_size"] <= 1000
    assert field("tokenizer.chat_template") == settings["chat_template"]
    assert tokens[field("tokenizer.ggml.eos_token_id")] == settings["eos_token"] == "<|end|>"
    assert field("tokenizer.ggml.add_bos_token") is False
    assert field("tokenizer.ggml.add_space_prefix") is False


def test_every_digit_is_a_token_and_part_of_no_other() -> None:
    texts = [token for token in field("tokenizer.ggml.tokens") if not token.startswith("<0x")]
    assert sorted(token for token in texts if any(c.isdigit() for c in token)) == list("0123456789")


def test_gguf_holds_the_weights_of_the_safetensors() -> None:
    """All equal, the rows of queries and keys in llama.cpp's order (LlamaModel.permute of its converter)."""
    expected = dict(hf_tensors())
    for tensor in reader().tensors:
        name = hf_name(tensor.name)
        weight = expected.pop(name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = weight.shape[0] // config()["head_dim"]
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        assert np.array_equal(tensor.data, weight), tensor.name
    assert not expected


def hf_name(name: str) -> str:
    fixed = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    stem = name.removesuffix(".weight")
    if stem in fixed:
        return f"{fixed[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{GGUF_LAYER_NAMES[part]}.weight"

"""Models as planning sees them, for tests that need no file."""

from __future__ import annotations

from edgebuild.gguf import Tensor
from edgebuild.model_spec import ModelSpec

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def llama_spec(
    *,
    name: str = "llama-3.2-1b",
    layers: int = 16,
    embedding: int = 2048,
    feed_forward: int = 8192,
    heads: int = 32,
    kv_heads: int = 8,
    vocabulary: int = 128_256,
    context_trained: int = 131_072,
    dtype: str = "F16",
    is_tied: bool = True,
) -> ModelSpec:
    """Describe a Llama; as it stands Llama 3.2 1B, from its model card and config.json."""
    kv = embedding // heads * kv_heads
    shapes = {"token_embd.weight": (embedding, vocabulary), "output_norm.weight": (embedding,)}
    if not is_tied:
        shapes["output.weight"] = (embedding, vocabulary)
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (embedding,),
            f"blk.{layer}.attn_q.weight": (embedding, embedding),
            f"blk.{layer}.attn_k.weight": (embedding, kv),
            f"blk.{layer}.attn_v.weight": (embedding, kv),
            f"blk.{layer}.attn_output.weight": (embedding, embedding),
            f"blk.{layer}.ffn_norm.weight": (embedding,),
            f"blk.{layer}.ffn_gate.weight": (embedding, feed_forward),
            f"blk.{layer}.ffn_up.weight": (embedding, feed_forward),
            f"blk.{layer}.ffn_down.weight": (feed_forward, embedding),
        }
    tensors = tuple(_tensor(name, shape, dtype) for name, shape in shapes.items())
    header_bytes = 7_800_000 if vocabulary > 100_000 else 60 * vocabulary
    return ModelSpec(
        name=name, file_name=f"{name}.{dtype}.gguf", architecture="llama", quantization=dtype, licence="llama3.2",
        parameters=sum(_elements(tensor.shape) for tensor in tensors), tensors=tensors, header_bytes=header_bytes,
        file_bytes=header_bytes + sum(tensor.size_bytes for tensor in tensors), layers=layers,
        kv_heads=(kv_heads,) * layers, heads=heads, query_groups=heads // kv_heads, recurrent_layers=0,
        state_length=0, experts=0,
        key_length=embedding // heads, value_length=embedding // heads, embedding=embedding, feed_forward=feed_forward,
        vocabulary=vocabulary, merges=0, context_trained=context_trained, has_chat_template=True,
    )  # fmt: skip


def _tensor(name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    kind = dtype if len(shape) > 1 else "F32"
    return Tensor(name=name, shape=shape, type=kind, size_bytes=_elements(shape) * _BYTES[kind])


def _elements(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)

"""Makes a small BERT with random weights: an encoder that embeds texts and generates none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, PoolingType, TokenType
from gguf.constants import LlamaFileType

DIM = 64
PAD, UNK, CLS, SEP, MASK = range(5)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = ("obstacle", "ahead", "left", "right", "battery", "low", "the")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?"


def write_tiny_bert(
    path: Path,
    *,
    pooling: PoolingType | None = PoolingType.MEAN,
    dim: int = DIM,
    ff: int = 128,
    layers: int = 2,
    heads: int = 2,
    vocabulary_tokens: int = 256,
    context_tokens: int = 128,
) -> Path:
    """Write a BERT in 32 bits.

    Args:
        pooling: How the header says that vectors of texts are made; None leaves the key out.
        dim: Embedding length, a multiple of the heads.
        ff: Length of the feed-forward layer.
        vocabulary_tokens: Size that the vocabulary is filled up to with words that no test's text holds.
        context_tokens: Longest text.

    Returns:
        `path`.
    """
    # Word pieces: "▁" begins a word, what has none goes on with one.
    texts = [*_SPECIAL, *(f"▁{word}" for word in _WORDS), *(f"▁{letter}" for letter in _LETTERS), *_LETTERS]
    texts += [f"▁word{number}" for number in range(len(texts), vocabulary_tokens)]
    writer = GGUFWriter(str(path), "bert")
    writer.add_name("tiny-bert")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(ff)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(value=False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("bert")
    writer.add_token_list([text.encode() for text in texts])
    writer.add_token_types(
        [
            int(TokenType.CONTROL if number < len(_SPECIAL) else TokenType.NORMAL)
            for number in range(len(texts))
        ]
    )
    writer.add_token_type_count(2)
    writer.add_bos_token_id(CLS)
    writer.add_unk_token_id(UNK)
    writer.add_sep_token_id(SEP)
    writer.add_pad_token_id(PAD)
    writer.add_mask_token_id(MASK)
    tensors = _tensors(
        dim=dim, ff=ff, layers=layers, vocabulary_tokens=len(texts), context_tokens=context_tokens
    )
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(
    *, dim: int, ff: int, layers: int, vocabulary_tokens: int, context_tokens: int
) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return random.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)

    def norm(name: str) -> dict[str, npt.NDArray[np.float32]]:
        return {
            f"{name}.weight": np.ones(dim, dtype=np.float32),
            f"{name}.bias": np.zeros(dim, dtype=np.float32),
        }

    def linear(name: str, rows: int, columns: int) -> dict[str, npt.NDArray[np.float32]]:
        bias = random.standard_normal(rows, dtype=np.float32) / np.float32(10)
        return {f"{name}.weight": matrix(rows, columns), f"{name}.bias": bias}

    tensors = {
        "token_embd.weight": matrix(vocabulary_tokens, dim),
        "position_embd.weight": matrix(context_tokens, dim),
        "token_types.weight": matrix(2, dim),
        **norm("token_embd_norm"),
    }
    for layer in range(layers):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors |= linear(f"{block}.{name}", dim, dim)
        tensors |= norm(f"{block}.attn_output_norm")
        tensors |= linear(f"{block}.ffn_up", ff, dim)
        tensors |= linear(f"{block}.ffn_down", dim, ff)
        tensors |= norm(f"{block}.layer_output_norm")
    return tensors

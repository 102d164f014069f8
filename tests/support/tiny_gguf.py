"""Makes small GGUF models for tests: random weights, or weights that say a script word by word.

Both have the same vocabulary layout (SPM with byte tokens, ChatML control tokens, a chat template) and are the same
bytes for the same arguments.

    write_tiny_gguf(path, *, dim=256, ff=512, layers=2, vocabulary_tokens=0, context_tokens=512, seed=0, dtype="f16",
                    kv_heads=None, is_tied=False, experts=0, pooling=None, chat_template=CHATML)
    write_scripted_gguf(path, *, scripts, loops=(), control=(), context_tokens=2048, chat_template=CHATML)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, PoolingType, TokenType
from gguf.constants import LlamaFileType

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
UNK, BOS, EOS, IM_START, IM_END = range(5)
FIRST_BYTE = len(CONTROL)
NEWLINE = FIRST_BYTE + 10
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?%()-/'\""
_WORDS = (
    "the",
    "and",
    "ing",
    "er",
    "on",
    "at",
    "re",
    "st",
    "en",
    "Obstacle",
    "ahead",
    "left",
    "right",
    "Battery",
    "low",
)
_DTYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32, np.float32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16, np.float16),
}

EXPERTS_USED = 2

Piece = str | bytes


def byte_token(value: int) -> int:
    """The token of one byte."""
    return FIRST_BYTE + value


class _Vocabulary:
    """Token texts, scores and types in the order of their ids."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.scores: list[float] = []
        self.types: list[int] = []

    def add(self, text: str, kind: TokenType, score: float = 0.0) -> int:
        self.texts.append(text.encode())
        self.scores.append(score)
        self.types.append(int(kind))
        return len(self.texts) - 1

    @property
    def size(self) -> int:
        return len(self.texts)


def _base_vocabulary() -> _Vocabulary:
    vocabulary = _Vocabulary()
    for text in CONTROL:
        vocabulary.add(text, TokenType.UNKNOWN if text == "<unk>" else TokenType.CONTROL)
    for value in range(256):
        vocabulary.add(f"<0x{value:02X}>", TokenType.BYTE)
    return vocabulary


def _add_words(vocabulary: _Vocabulary) -> None:
    vocabulary.add("▁", TokenType.NORMAL, -1.0)
    for rank, letter in enumerate(_LETTERS):
        vocabulary.add(letter, TokenType.NORMAL, -100.0 - rank)
    # SPM merges pairs, so a word is found only if each of its beginnings is a token too.
    known: set[str] = set(_LETTERS)
    rank = 0
    for word in _WORDS:
        for whole in (word, "▁" + word):
            for end in range(2, len(whole) + 1):
                text = whole[:end]
                if text not in known:
                    known.add(text)
                    rank += 1
                    vocabulary.add(text, TokenType.NORMAL, -1.0 - rank / 100)


def _write(
    path: Path,
    vocabulary: _Vocabulary,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    *,
    dim: int,
    ff: int,
    layers: int,
    heads: int,
    kv_heads: int,
    context_tokens: int,
    dtype: str,
    chat_template: str | None,
    eos: int,
    experts: int = 0,
    pooling: PoolingType | None = None,
) -> Path:
    kind, file_type, numpy_type = _DTYPES[dtype]
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_file_type(file_type)
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(ff)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(EXPERTS_USED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim // heads)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_vocab_size(vocabulary.size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary.texts)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(UNK)
    writer.add_add_bos_token(value=True)
    writer.add_add_space_prefix(value=False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for name, values in tensors.items():
        if values.ndim == 1:
            writer.add_tensor(name, values.astype(np.float32))
        else:
            writer.add_tensor(name, values.astype(numpy_type), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny_gguf(
    path: Path,
    *,
    dim: int = 256,
    ff: int = 512,
    layers: int = 2,
    vocabulary_tokens: int = 0,
    context_tokens: int = 512,
    seed: int = 0,
    dtype: str = "f16",
    kv_heads: int | None = None,
    is_tied: bool = False,
    experts: int = 0,
    pooling: PoolingType | None = None,
    chat_template: str | None = CHATML,
) -> Path:
    """Write a Llama model with random weights.

    Args:
        dim: Embedding length, a multiple of 64; of 256 where K-quants are to be made from it.
        ff: Length of the feed-forward layer; likewise.
        vocabulary_tokens: Size that the vocabulary is filled up to with words that no prompt turns into; such a model
            says no control token, so that every answer is as long as it may be. 0 leaves it small.
        context_tokens: Longest context that the header declares.
        dtype: `f16` or `f32`; with `f32`, greedy text does not depend on what else is in the batch.
        kv_heads: Key/value heads of 64; by default half as many as attention heads.
        is_tied: Whether the embeddings are the output matrix too.
        experts: Feed-forward networks beside each other, of which each token goes through `EXPERTS_USED`; 0 for one.
        pooling: How the header says that vectors of texts are made; None leaves the key out.
        chat_template: Jinja text; None leaves the key out.

    Returns:
        `path`.
    """
    vocabulary = _base_vocabulary()
    _add_words(vocabulary)
    is_filled = vocabulary.size < vocabulary_tokens
    while vocabulary.size < vocabulary_tokens:
        vocabulary.add(f"▁word{vocabulary.size}", TokenType.NORMAL, -1000.0 - vocabulary.size)
    random = np.random.default_rng(seed)
    heads = dim // 64
    kv_heads = kv_heads or max(1, heads // 2)
    kv_dim = dim * kv_heads // heads

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return random.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)

    tensors: dict[str, npt.NDArray[np.float32]] = {
        "token_embd.weight": matrix(vocabulary.size, dim) * np.float32(dim**0.5)
    }
    for layer in range(layers):
        block = f"blk.{layer}"
        tensors |= {
            f"{block}.attn_norm.weight": np.ones(dim, dtype=np.float32),
            f"{block}.attn_q.weight": matrix(dim, dim),
            f"{block}.attn_k.weight": matrix(kv_dim, dim),
            f"{block}.attn_v.weight": matrix(kv_dim, dim),
            f"{block}.attn_output.weight": matrix(dim, dim),
            f"{block}.ffn_norm.weight": np.ones(dim, dtype=np.float32),
            f"{block}.ffn_gate.weight": matrix(ff, dim),
            f"{block}.ffn_up.weight": matrix(ff, dim),
            f"{block}.ffn_down.weight": matrix(dim, ff),
        }
        if experts:
            tensors[f"{block}.ffn_gate_inp.weight"] = matrix(experts, dim)
            for name, rows, columns in (("gate", ff, dim), ("up", ff, dim), ("down", dim, ff)):
                del tensors[f"{block}.ffn_{name}.weight"]
                some = np.stack([matrix(rows, columns) for _ in range(experts)])
                tensors[f"{block}.ffn_{name}_exps.weight"] = some
    output = matrix(vocabulary.size, dim) * np.float32(4)
    if is_filled:
        # The largest of so many random logits is far above 0.
        output[: len(CONTROL)] = 0.0
    tensors["output_norm.weight"] = np.ones(dim, dtype=np.float32)
    if is_tied:
        # Logits of 0 for what would end an answer, as above.
        tensors["token_embd.weight"][: len(CONTROL)] = 0.0
    else:
        tensors["output.weight"] = output
    return _write(
        path, vocabulary, tensors, dim=dim, ff=ff, layers=layers, heads=heads, kv_heads=kv_heads,
        context_tokens=context_tokens, dtype=dtype, chat_template=chat_template, eos=EOS, experts=experts,
        pooling=pooling,
    )  # fmt: skip


def write_scripted_gguf(
    path: Path,
    *,
    scripts: Mapping[str, Sequence[Piece]],
    loops: Sequence[str] = (),
    control: Sequence[str] = (),
    context_tokens: int = 2048,
    chat_template: str | None = CHATML,
) -> Path:
    """Write a Llama model whose greedy answer is known: it depends on the last token of the prompt alone.

    The embedding of each token is a unit vector, the one layer adds nothing, and the output matrix sends each unit
    vector to the token that shall follow.

    Args:
        scripts: What follows which last word of the prompt: `{"go": ("Hello", " world", b"\\xe2\\x82", b"\\xac")}`.
            The word `"\\n"` is the end of the chat template's prompt, so its script answers every chat. A text becomes
            a token of its own, bytes become byte tokens; no token may stand in two places of all scripts.
            Each script ends with the end token.
        loops: Words whose script starts again instead of ending.
        control: Texts that are control tokens, in scripts too.

    Returns:
        `path`.
    """
    vocabulary = _base_vocabulary()
    follows: dict[int, int] = {}
    known = {text: vocabulary.add(text, TokenType.CONTROL) for text in control}
    for word, script in scripts.items():
        start = NEWLINE if word == "\n" else vocabulary.add(word, TokenType.USER_DEFINED)
        chain: list[int] = []
        for piece in script:
            if isinstance(piece, bytes):
                chain.extend(byte_token(value) for value in piece)
            else:
                # Spaces stand as they are only in user-defined tokens.
                token = known.get(piece)
                chain.append(vocabulary.add(piece, TokenType.USER_DEFINED) if token is None else token)
        if len({start, *chain, *follows}) != 1 + len(chain) + len(follows):
            raise ValueError(f"a token of the script {word!r} stands in two places")
        last = chain[0] if word in loops else EOS
        follows |= dict(zip((start, *chain), (*chain, last), strict=True))
    dim = -(-vocabulary.size // 256) * 256
    kv_heads, heads, ff = 1, dim // 64, 32
    embedding = np.zeros((vocabulary.size, dim), dtype=np.float32)
    embedding[np.arange(vocabulary.size), np.arange(vocabulary.size)] = 1.0
    output = np.zeros((vocabulary.size, dim), dtype=np.float32)
    for token in range(vocabulary.size):
        output[follows.get(token, EOS), token] = 8.0
    nothing = {
        "attn_q": (dim, dim), "attn_k": (64, dim), "attn_v": (64, dim), "attn_output": (dim, dim),
        "ffn_gate": (ff, dim), "ffn_up": (ff, dim), "ffn_down": (dim, ff),
    }  # fmt: skip
    tensors: dict[str, npt.NDArray[np.float32]] = {"token_embd.weight": embedding}
    tensors |= {f"blk.0.{name}.weight": np.zeros(shape, dtype=np.float32) for name, shape in nothing.items()}
    tensors |= {
        "blk.0.attn_norm.weight": np.ones(dim, dtype=np.float32),
        "blk.0.ffn_norm.weight": np.ones(dim, dtype=np.float32),
        "output_norm.weight": np.ones(dim, dtype=np.float32),
        "output.weight": output,
    }
    return _write(
        path, vocabulary, tensors, dim=dim, ff=ff, layers=1, heads=heads, kv_heads=kv_heads,
        context_tokens=context_tokens, dtype="f16", chat_template=chat_template, eos=EOS,
    )  # fmt: skip

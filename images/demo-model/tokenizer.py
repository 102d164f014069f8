"""Tokenizer of the demo model: a SentencePiece BPE of 512 pieces in which every digit is a token of its own.

A number is thus copied digit by digit, whatever its length. The vocabulary is written twice, as in the first
Llama models: `tokenizer.model` (SentencePiece), from which llama.cpp's converter takes pieces and scores, and
`tokenizer.json` for Hugging Face's tokenizers. The second lists every pair of pieces that gives a piece, in the
order of the scores, so that both merge in the same order.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

VOCABULARY = 512
UNKNOWN, END, SYSTEM, USER, ASSISTANT = "<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (UNKNOWN, END, SYSTEM, USER, ASSISTANT)
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark for a space

# The text that this gives is the one of llama.cpp's built-in template "phi3", so that an engine without Jinja
# recognises it (llama.cpp src/llama-chat.cpp, LLM_CHAT_TEMPLATE_PHI_3).
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def make_sentencepiece(lines: Iterable[str]) -> bytes:
    """Train the vocabulary; equal lines give equal bytes.

    Returns:
        A serialised SentencePiece model of `VOCABULARY` pieces: the special ones, 256 bytes, then the rest.
    """
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="bpe",
        vocab_size=VOCABULARY,
        required_chars=PRINTABLE,
        character_coverage=1.0,
        split_digits=True,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        unk_id=SPECIAL.index(UNKNOWN),
        unk_piece=UNKNOWN,
        bos_id=-1,
        eos_id=SPECIAL.index(END),
        eos_piece=END,
        pad_id=-1,
        control_symbols=[SYSTEM, USER, ASSISTANT],
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def make_tokenizer(model: bytes) -> Tokenizer:
    """Make Hugging Face's form of a SentencePiece model from `make_sentencepiece`."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {pieces.id_to_piece(index): index for index in range(len(pieces))}
    mergeable = {
        piece: index
        for piece, index in vocabulary.items()
        if not (pieces.is_byte(index) or pieces.is_control(index) or pieces.is_unknown(index))
    }
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(mergeable, key=mergeable.__getitem__)
        for cut in range(1, len(piece))
        if piece[:cut] in mergeable and piece[cut:] in mergeable
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return tokenizer


def write_tokenizer(folder: Path, model: bytes, *, context_tokens: int) -> None:
    """Write tokenizer.model, tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    special: dict[str, Any] = {
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "unk_token": UNKNOWN,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
    }
    config = special | {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer.model").write_bytes(model)
    make_tokenizer(model).save(str(folder / "tokenizer.json"))
    for name, document in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(document, indent=2) + "\n")

"""Perplexity and KL divergence once more, by numpy in 64 bit and straight from the definition: what ours is compared with.

Run as `perplexity_reference.py BASE OTHER TEXT CONTEXT` with the package `llama_cpp` on PYTHONPATH; prints JSON. It shares
no code with edgebuild: it asks llama.cpp for the logits of whole chunks and does the rest by itself, as
tools/perplexity/perplexity.cpp of llama.cpp describes it. Sums in 32 bit depend a little on how many tokens are computed at once, so it
reads in steps of the same size.
"""

import ctypes
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

STEP_TOKENS = 64


def logprobs(
    file: str, text: str, context_tokens: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    from llama_cpp import llama_cpp as api

    folder = Path(api.__file__).parent / "lib"
    ctypes.CDLL(str(folder / "libggml.so")).ggml_backend_load_all_from_path(str(folder).encode())
    model = api.llama_model_load_from_file(file.encode(), api.llama_model_default_params())
    vocabulary = api.llama_model_get_vocab(model)
    data = text.encode()
    buffer = (ctypes.c_int32 * (len(data) + 8))()
    count = api.llama_tokenize(vocabulary, data, len(data), buffer, len(buffer), True, False)
    tokens = list(buffer[:count])
    size = api.llama_vocab_n_tokens(vocabulary)
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = context_tokens
    params.n_threads = params.n_threads_batch = 1
    context = api.llama_init_from_model(model, params)
    batch = api.llama_batch_init(context_tokens, 0, 1)
    half = context_tokens // 2
    rows, came = [], []
    for start in range(0, len(tokens) - context_tokens + 1, context_tokens):
        chunk = tokens[start : start + context_tokens]
        if api.llama_vocab_get_add_bos(vocabulary):
            chunk[0] = api.llama_vocab_bos(vocabulary)
        api.llama_memory_clear(api.llama_get_memory(context), True)
        steps = [0, *range(half, context_tokens - 1, STEP_TOKENS), context_tokens - 1]
        for first, end in itertools.pairwise(steps):
            batch.n_tokens = end - first
            for index in range(end - first):
                batch.token[index], batch.pos[index], batch.logits[index] = (
                    chunk[first + index],
                    first + index,
                    True,
                )
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            assert api.llama_decode(context, batch) == 0
            if first >= half:
                pointer = ctypes.cast(api.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
                logits = np.ctypeslib.as_array(pointer, (end - first, size)).astype(np.float64)
                rows.append(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        came += chunk[half + 1 :]
    return np.concatenate(rows), np.array(came)


def main(base_file: str, other_file: str, text_file: str, context_tokens: int) -> None:
    text = Path(text_file).read_text("utf-8")
    base, came = logprobs(base_file, text, context_tokens)
    other, _ = logprobs(other_file, text, context_tokens)
    place = np.arange(len(came))
    divergence = (np.exp(base) * (base - other)).sum(axis=1)
    found = {
        "scored_tokens": len(came),
        "base_perplexity": float(np.exp(-base[place, came].mean())),
        "perplexity": float(np.exp(-other[place, came].mean())),
        "kl_divergence": float(divergence.mean()),
        "kl_divergence_99": float(np.percentile(divergence, 99)),
        "kl_divergence_max": float(divergence.max()),
        "same_top": float((base.argmax(axis=1) == other.argmax(axis=1)).mean()),
        "probability_change_rms": float(
            np.sqrt(np.mean((np.exp(other[place, came]) - np.exp(base[place, came])) ** 2))
        ),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

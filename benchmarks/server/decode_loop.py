"""The least that an answer takes: prompt, then token by token, one sequence, nothing else; run inside the image.

    python decode_loop.py LIBRARY_FOLDER MODEL THREADS CONTEXT_TOKENS

Reads JSON lines, bodies of completions, and answers each with `{"seconds": s}`. Library, model and threads are made
ready by the server's own modules; the loop is llama.h's and no more.
"""

import ctypes
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from edgeserve.engine.library import Library
from edgeserve.engine.model import LlamaModel
from edgeserve.log import Log


def main() -> None:
    """Answer until the input ends."""
    directory, file, threads, context_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    library = Library(directory, Log())
    api, model = library.api, LlamaModel(library, (file,))
    params = api.llama_context_default_params()
    params.n_ctx = context_tokens
    params.n_threads = params.n_threads_batch = threads
    context = api.llama_init_from_model(model.pointer, params)
    pool = library.make_threadpool(threads)
    attach = ctypes.CDLL(str(library.directory / "libllama.so")).llama_attach_threadpool
    attach.argtypes, attach.restype = [ctypes.c_void_p] * 3, None
    attach(context, pool, pool)
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": _answer(api, model, context, json.loads(line))}), flush=True)


def _answer(api: Any, model: LlamaModel, context: int, asked: Mapping[str, Any]) -> float:
    api.llama_memory_clear(api.llama_get_memory(context), False)  # noqa: FBT003 - a C bool argument
    chain = _make_chain(api, asked)
    begin_s = time.monotonic()
    prompt = model.tokenize(asked["prompt"], special=False)
    tokens = (ctypes.c_int32 * (len(prompt) + 1))(model.bos_token or 0, *prompt)
    count = len(tokens)
    for _ in range(asked["max_tokens"]):
        if api.llama_decode(context, api.llama_batch_get_one(tokens, count)) != 0:
            raise SystemExit("llama_decode failed")
        tokens[0], count = api.llama_sampler_sample(chain, context, -1), 1
        model.piece(tokens[0])
    seconds = time.monotonic() - begin_s
    api.llama_sampler_free(chain)
    return seconds


def _make_chain(api: Any, asked: Mapping[str, Any]) -> int:
    chain: int = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    for part in (
        api.llama_sampler_init_top_k(asked["top_k"]),
        api.llama_sampler_init_top_p(asked["top_p"], 1),
        api.llama_sampler_init_min_p(asked["min_p"], 1),
        api.llama_sampler_init_temp(asked["temperature"]),
        api.llama_sampler_init_dist(asked["seed"]),
    ):
        api.llama_sampler_chain_add(chain, part)
    return chain


main()

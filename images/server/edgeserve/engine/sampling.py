"""Builds llama.cpp's sampler chains from `Sampling`.

The order is that of llama.cpp's own tools (common/sampling.cpp): penalties, the cuts top_k, top_p and min_p, then the
temperature, then the draw.
"""

from __future__ import annotations

from typing import Any

from edgeserve.engine.protocol import EngineError, Sampling


def make_chain(api: Any, sampling: Sampling, *, vocabulary_tokens: int, output_tokens: int) -> int:
    """Build a chain.

    Args:
        api: The module `llama_cpp.llama_cpp`.
        sampling: What the client wants.
        vocabulary_tokens: Size of the vocabulary.
        output_tokens: Longest answer; penalties look back over all of it.

    Returns:
        The address of the chain, to be freed with `llama_sampler_free`, which frees its parts too.
    """
    params = api.llama_sampler_chain_default_params()
    params.no_perf = True
    parts = _parts(api, sampling, vocabulary_tokens, output_tokens)
    if not all(parts):
        raise EngineError("llama.cpp refused a sampler")
    chain: int = api.llama_sampler_chain_init(params)
    for part in parts:
        api.llama_sampler_chain_add(chain, part)
    return chain


def _parts(api: Any, sampling: Sampling, vocabulary_tokens: int, output_tokens: int) -> list[int]:
    parts: list[int] = []
    if sampling.has_penalties:
        parts.append(
            api.llama_sampler_init_penalties(
                vocabulary_tokens,
                output_tokens,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.temperature <= 0.0:
        return [*parts, api.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        parts.append(api.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1.0:
        parts.append(api.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        parts.append(api.llama_sampler_init_min_p(sampling.min_p, 1))
    if sampling.temperature != 1.0:
        parts.append(api.llama_sampler_init_temp(sampling.temperature))
    return [*parts, api.llama_sampler_init_dist(sampling.seed)]

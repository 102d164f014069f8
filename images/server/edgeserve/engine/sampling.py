"""Draws tokens with llama.cpp's samplers as `Sampling` says.

The order is that of llama.cpp's own tools (common/sampling.cpp): bias, penalties, the cuts top_k, top_p and min_p, then
the temperature, then the draw. A grammar is asked about the drawn token first and applied to the whole vocabulary only
when it refuses that one: most tokens are right, and the whole takes milliseconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Final

from edgeserve.engine.candidates import Candidates
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import EngineError, Likelihood, Logprobs, Sampling

_ROOT: Final = b"root"
_IMPOSSIBLE: Final = -math.inf
# Computing time of one token that an ambiguous grammar may take from everyone else: to draw it, and to ask about one
# token, which foretells what asking about the whole vocabulary would take.
_LONGEST_DRAW_S: Final = 1.0
_LONGEST_CHECK_S: Final = 0.01


class DeadEndError(Exception):
    """No token of the vocabulary goes on as the grammar demands, or finding one takes too long."""


class Sampler:
    """The samplers of one request; `draw` for each of its tokens, `close` at its end."""

    __slots__ = ("_api", "_candidates", "_chain", "_grammar")

    def __init__(self, api: Any, chain: int, grammar: int, candidates: Candidates | None) -> None:
        self._api = api
        self._chain = chain
        self._grammar = grammar
        self._candidates = candidates

    def draw(self, context: int, index: int) -> int:
        """Draw the token after one of the last forward pass; `index` is its place in the batch.

        Raises:
            DeadEndError: The grammar allows none.
        """
        if self._candidates is None:
            token: int = self._api.llama_sampler_sample(self._chain, context, index)
            return token
        return self._draw_by_grammar(self._candidates, context, index)

    def _draw_by_grammar(self, candidates: Candidates, context: int, index: int) -> int:
        started = time.thread_time()
        candidates.fill(context, index)
        candidates.apply(self._chain)
        token = candidates.selected
        if token is None or not self._allows(candidates, token):
            candidates.fill(context, index)
            candidates.apply(self._grammar)
            best = candidates.best()
            if best is None:
                raise DeadEndError
            candidates.apply(self._chain)
            token = candidates.selected
            # A draw may end on what has no chance at all, and llama.cpp aborts when a grammar accepts what it refuses.
            token = best if token is None else token
        self._api.llama_sampler_accept(self._grammar, token)
        self._api.llama_sampler_accept(self._chain, token)
        if time.thread_time() - started > _LONGEST_DRAW_S:
            raise DeadEndError
        return token

    def _allows(self, candidates: Candidates, token: int) -> bool:
        started = time.thread_time()
        candidates.fill_one(token)
        candidates.apply(self._grammar)
        if time.thread_time() - started > _LONGEST_CHECK_S:
            raise DeadEndError
        return candidates.is_possible()

    def close(self) -> None:
        """Free the samplers."""
        self._api.llama_sampler_free(self._chain)
        if self._grammar:
            self._api.llama_sampler_free(self._grammar)


class SamplerMaker:
    """Makes samplers for one model, and looks into its distributions; for one thread."""

    def __init__(self, api: Any, model: LlamaModel) -> None:
        self._api = api
        self._model = model
        # Control tokens have no text in the answer and must not stand for one in the eyes of a grammar.
        self._silent = tuple((token, _IMPOSSIBLE) for token in model.silent_tokens)
        self._candidates: Candidates | None = None

    def make(self, sampling: Sampling, *, output_tokens: int) -> Sampler:
        """Make the sampler of one request.

        Args:
            sampling: What the client wants.
            output_tokens: Longest answer; penalties look back over all of it.

        Raises:
            EngineError: llama.cpp refuses.
        """
        chain = self._chain(self._parts(sampling, output_tokens))
        if not sampling.grammar:
            return Sampler(self._api, chain, 0, None)
        grammar = self._api.llama_sampler_init_grammar(
            self._model.vocabulary, sampling.grammar.encode("utf-8"), _ROOT
        )
        try:
            silent = self._silent
            if sampling.spoken:
                silent = tuple(one for one in silent if one[0] not in sampling.spoken)
            rules = self._chain([self._bias(silent), grammar])
        except EngineError:
            self._api.llama_sampler_free(chain)
            raise
        return Sampler(self._api, chain, rules, self._get_candidates())

    def logprobs(self, context: int, index: int, token: int, count: int) -> Logprobs:
        """Say how likely a drawn token was.

        Args:
            context: Address of llama.cpp's context.
            index: Place in the last batch of the token that it came after.
            token: What was drawn.
            count: How many of the likeliest to name.
        """
        ranked, drawn = self._get_candidates().likelihoods(context, index, token=token, count=count)

        def described(one: int, logprob: float) -> Likelihood:
            piece = self._model.piece(one) or self._model.text_of(one).encode()
            return Likelihood(token=one, piece=piece, logprob=logprob)

        likeliest = tuple(described(one, logprob) for one, logprob in ranked)
        return Logprobs(drawn=described(token, drawn), likeliest=likeliest)

    def close(self) -> None:
        """Free what all samplers share."""
        if self._candidates is not None:
            self._candidates.close()

    def _get_candidates(self) -> Candidates:
        """Make the array on its first use: it takes 24 bytes for every token of the vocabulary."""
        if self._candidates is None:
            self._candidates = Candidates(self._api, self._model.vocabulary_tokens)
        return self._candidates

    def _chain(self, parts: list[int]) -> int:
        if not all(parts):
            for part in parts:
                self._api.llama_sampler_free(part)
            raise EngineError("llama.cpp refused a sampler or a grammar")
        params = self._api.llama_sampler_chain_default_params()
        params.no_perf = True
        chain: int = self._api.llama_sampler_chain_init(params)
        for part in parts:
            self._api.llama_sampler_chain_add(chain, part)
        return chain

    def _bias(self, pairs: Sequence[tuple[int, float]]) -> int:
        array = (self._api.llama_logit_bias * len(pairs))(*pairs)
        sampler: int = self._api.llama_sampler_init_logit_bias(
            self._model.vocabulary_tokens, len(pairs), array
        )
        return sampler

    def _parts(self, sampling: Sampling, output_tokens: int) -> list[int]:
        api = self._api
        parts: list[int] = []
        if sampling.logit_bias:
            parts.append(self._bias(sampling.logit_bias))
        if sampling.has_penalties:
            parts.append(
                api.llama_sampler_init_penalties(
                    self._model.vocabulary_tokens,
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

"""The contract between the scheduler and any inference engine.

An engine works on token ids. All calls except `Engine.tokenize` come from one thread, the scheduler's; text, stop
strings, queues and deadlines are the scheduler's business, so that every engine behaves alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol


class EngineError(Exception):
    """The engine cannot do what it was asked: a library or model that does not load, a failed forward pass."""


class FinishReason(StrEnum):
    """Why a request ended; the first three are OpenAI's words for it. An engine knows nothing of tools."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"
    FAILED = "failed"


SEEDS: Final = 2**32 - 1  # of 32 bits llama.cpp takes the last, LLAMA_DEFAULT_SEED, for "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the defaults choose from the model's own distribution.

    `temperature` 0 takes the likeliest token. `top_k` 0, `top_p` 1, `min_p` 0, `repeat_penalty` 1 and the other
    penalties 0 are off. Penalties count the tokens of the answer, not of the prompt. `seed` has 32 bits; 2**32 - 1 is
    llama.cpp's mark for "random" and not allowed.

    Attributes:
        logit_bias: What is added to the logits of which tokens before anything else.
        grammar: GBNF that the whole answer follows, its start symbol `root`; empty for none.
        spoken: Control tokens that the answer may hold where the grammar lets their spelling stand, as that text.
        logprobs: How many alternatives each token comes with, beside its own log probability; None for neither.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str = ""
    spoken: frozenset[int] = frozenset()
    logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty is on."""
        return (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One answer to generate: at least 1 prompt token, at most `output_tokens` new ones.

    Together they are within the context, unless the engine can shift it: then the prompt and one token are.
    `ignores_end` goes on to the last of the output tokens, whatever the model says: for measuring.
    """

    id: str
    prompt: tuple[int, ...]
    output_tokens: int
    sampling: Sampling
    ignores_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts to embed, for models with `facts.vector_length`: at least one, each of 1 to `facts.context_tokens` tokens."""

    id: str
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """A token that was possible, as text, and its natural log probability in the model's own distribution."""

    token: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """How likely the drawn token was, and the likeliest ones, the first the likeliest."""

    drawn: Likelihood
    likeliest: tuple[Likelihood, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token; `piece` is its text in UTF-8, of which it may hold part of a character, or nothing."""

    request_id: str
    token: int
    piece: bytes
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """The embedding of one of a request's texts: 32-bit floats, little endian, of length 1; they come in the texts' order."""

    request_id: str
    values: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of a request, always its last event; `cached_tokens` of the prompt were not computed again."""

    request_id: str
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


Event = Token | Vector | Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the server needs to know of the loaded model.

    `context_tokens` is what one slot holds, `trained_context_tokens` what the model was trained on; `can_shift` says
    that an answer may go on past the context, by forgetting what is oldest. `control_texts` are the spellings of control
    tokens, `end_texts` those among them that end an answer. `vector_length` is not 0 for a model that embeds texts instead
    of generating any; then `context_tokens` bounds one text with what stands around every one, `text_prefix` and
    `text_suffix`.
    """

    description: str
    cpu_variant: str
    context_tokens: int
    trained_context_tokens: int
    slots: int
    threads: int
    vocabulary_tokens: int
    chat_template: str | None
    bos_text: str
    eos_text: str
    bos_token: int | None
    add_bos: bool
    control_texts: tuple[str, ...]
    end_texts: tuple[str, ...] = ()
    can_shift: bool = False
    vector_length: int = 0
    text_prefix: tuple[int, ...] = ()
    text_suffix: tuple[int, ...] = ()

    def longest_prompt(self, most: int) -> int:
        """Count the tokens that a prompt may have where `most` are allowed: an answer needs room for one, a vector for none."""
        return min(most, self.context_tokens - (0 if self.vector_length else 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters since the start and the present use; `kv_tokens` counts cached tokens, also of idle slots."""

    slots: int
    busy_slots: int
    kv_tokens: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    steps: int


class Engine(Protocol):
    """Generates answers, or embeds texts, for up to `facts.slots` requests at the same time."""

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""

    def submit(self, request: Request | EmbeddingRequest) -> None:
        """Take a free slot; the caller has seen in `stats` that there is one.

        Raises:
            EngineError: No slot is free, the request does not fit the context, or the model does not do that.
        """

    def step(self) -> tuple[Event, ...]:
        """Run one forward pass over all requests; returns what it brought, nothing when there is nothing to do.

        Raises:
            EngineError: The engine is broken for good. A failure of some requests is their `Finish` instead.
        """

    def cancel(self, request_id: str) -> Finish | None:
        """Free the request's slot at once; None if the request is unknown or over."""

    def stats(self) -> EngineStats:
        """Count."""

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Turn text into tokens, from any thread.

        Args:
            text: Any text that can be written as UTF-8.
            special: Whether the texts of control tokens become control tokens; never for what a client wrote.
        """

    def close(self) -> None:
        """Give all memory back; no call may follow."""

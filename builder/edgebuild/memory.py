"""What each part of a running server takes of memory, by the rules of llama.cpp. Pure arithmetic.

Read from the sources that the engine is built from, and compared with running images by `python -m benchmarks memory`
and the tests. Resident memory is meant: of what is reserved, what is also touched.
"""

from dataclasses import dataclass

from edgebuild.model_spec import ModelSpec

# Resident memory of Python, the server's packages and the engine's libraries, mapped files included: 49 MB were measured
# on running images after requests; the rest is room for connections and requests under way.
SERVER_BYTES = 50 << 20
# What gRPC adds to it: 19 MB were measured after 160 calls by 16 clients; the rest is room for messages and connections.
GRPC_BYTES = 28 << 20
# What the audit log adds: the library that signs.
AUDIT_BYTES = 10 << 20
# Bytes of 32 elements of the key/value cache: block_q8_0 and block_q4_0 are 32 numbers and a 16-bit scale.
# Source: ggml/src/ggml-common.h.
_KV_BLOCK_BYTES = {"f16": 64, "q8_0": 34, "q4_0": 18}
# llama-context.cpp pads each sequence's part of the cache to this.
_CONTEXT_STEP_TOKENS = 256
# edgeserve computes no more tokens of prompts in a pass (engine/context.py), and that many texts (engine/embedding.py).
_LARGEST_PASS_TOKENS = 512
_TEXTS_TOGETHER = 16
_FLOAT_BYTES = 4
# Tensors in the 16-bit forms are multiplied as f16, others with activations in blocks of 8 bit and their scales.
_WIDE_ACTIVATION_BYTES, _NARROW_ACTIVATION_BYTES = 2.0, 1.15

# ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type: types of which a variant of the engine keeps a copy of its own.
_WITH_AVX2 = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_WITH_DOT_PRODUCT = frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0"})
_REPACKED = {
    "haswell": _WITH_AVX2,
    "alderlake": _WITH_AVX2,
    "icelake": _WITH_AVX2 | {"Q2_K"},
    "armv8.2_2": _WITH_DOT_PRODUCT,
    "armv8.6_2": _WITH_DOT_PRODUCT,
}
_REPACKED_ROWS = 8

# llama-vocab.cpp: of each token an entry of `id_to_token` (32 B), its text (24 B), a node and a bucket of `token_to_id`
# (80 B), a number in the list of all tokens (4 B); and of the header's arrays, freed but not given back, a text, a score and
# a type (32 B). Of each merge a node of `bpe_ranks` (96 B) and a text of the header's (24 B). Texts of more than 22 letters
# take more, and are few.
_TOKEN_BYTES, _MERGE_BYTES = 172, 120
# llama-sampler.cpp, llama_sampler_sample: a llama_token_data of each token, for one slot at a time.
_CANDIDATE_BYTES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the engine is set up for.

    Attributes:
        context_tokens: Longest sequence of one slot.
        slots: Sequences side by side.
        batch_tokens: Prompt tokens of one step.
        kv_type: Element type of the key/value cache.
        flash_attention: Whether attention is computed without holding all scores.
        whole_texts: Whether texts are embedded, each in one pass, so that the context is one pass long and there is one for all slots.
    """

    context_tokens: int
    slots: int
    batch_tokens: int
    kv_type: str
    flash_attention: bool
    whole_texts: bool = False

    @property
    def sequences(self) -> int:
        """Sequences that the engine keeps apart."""
        return _TEXTS_TOGETHER if self.whole_texts else self.slots

    @property
    def pass_tokens(self) -> int:
        """Tokens that one pass is reserved for: a multiple of the sequences (llama-context.cpp, graph_reserve)."""
        tokens = self.context_tokens if self.whole_texts else min(self.batch_tokens, _LARGEST_PASS_TOKENS)
        return -(-tokens // self.sequences) * self.sequences

    @property
    def cache_tokens(self) -> int:
        """Tokens that the key/value cache has room for."""
        return padded_context(self.context_tokens) * (1 if self.whole_texts else self.slots)

    @property
    def output_tokens(self) -> int:
        """Tokens of a pass whose outputs are kept."""
        return self.context_tokens if self.whole_texts else self.slots


def padded_context(context_tokens: int) -> int:
    """Return the tokens that one slot has room for."""
    return -(-context_tokens // _CONTEXT_STEP_TOKENS) * _CONTEXT_STEP_TOKENS


def kv_block_bytes(kv_type: str) -> int:
    """Return the bytes of 32 elements of a key/value cache."""
    return _KV_BLOCK_BYTES[kv_type]


def kv_cache_bytes(model: ModelSpec, work: Workload) -> int:
    """Size the key/value cache, which is cleared at the start and so resident from then on.

    Returns:
        Bytes for arrays K and V of every layer, of shapes (cache_tokens, kv_heads × key_length) and
        (cache_tokens, kv_heads × value_length); 0 for encoders, which have none.
    """
    if model.is_encoder:
        return 0
    elements = work.cache_tokens * sum(model.kv_heads) * (model.key_length + model.value_length)
    return elements * _KV_BLOCK_BYTES[work.kv_type] // 32


def state_bytes(model: ModelSpec, work: Workload) -> int:
    """Size the states of recurrent blocks, in 32 bit, one of each sequence (llama-memory-recurrent.cpp)."""
    return model.recurrent_layers * model.state_length * work.sequences * _FLOAT_BYTES


def compute_bytes(model: ModelSpec, work: Workload) -> int:
    """Size the engine's buffers for one pass: what the graph reserves, and what its operations work in."""
    return graph_bytes(model, work) + _operation_bytes(model, work)


def graph_bytes(model: ModelSpec, work: Workload) -> int:
    """Size what ggml-alloc.c reserves for the graph of one pass.

    Alive at the same time are, of each token:
    1. for the whole pass: its place for an embedding from outside (llama-graph.cpp, build_inp_embd) and its row of the
       attention mask, in 16 bit with flash attention, in 32 without; without it also 64-bit indices of the values,
       which then are stored transposed;
    2. in the feed-forward layer: residual, norm and a hole that the attention left, and gate, up and their product;
    3. in attention: residual, norm, queries, keys, values, result, and without flash attention the scores of all heads;
    4. at the end: the logits of one token of each slot; of whole texts, of every token, by models that have an output matrix.
    Encoders: see `_encoder_graph`.
    """
    if model.is_encoder:
        return _encoder_graph(model, work) * _FLOAT_BYTES
    tokens, context = work.pass_tokens, padded_context(work.context_tokens)
    queries, keys = model.heads * model.key_length, max(model.kv_heads) * model.key_length
    values = max(model.kv_heads) * model.value_length
    if work.flash_attention:
        held = model.embedding + context // 2
        attention = 2 * model.embedding + 2 * queries + keys + values
        feed_forward = 3 * model.embedding + 3 * model.feed_forward
    else:
        held = model.embedding + context + 2 * values
        attention = 2 * model.embedding + queries + keys + values + model.heads * context
        feed_forward = 4 * model.embedding + 3 * model.feed_forward
    logits = (tokens if work.whole_texts else work.slots) * model.vocabulary
    reserved = tokens * held + max(tokens * max(attention, feed_forward), logits)
    return reserved * _FLOAT_BYTES


def _encoder_graph(model: ModelSpec, work: Workload) -> int:
    """Count the floats of a pass of an encoder, which looks at the texts of the pass and nothing else (models/bert.cpp).

    Alive at the same time are, of each token:
    1. for the whole pass: as in `graph_bytes`, the mask as wide as the pass;
    2. in the feed-forward layer: residual and result, and the inner layer, thrice where there is a gate;
    3. in attention: residual, queries, keys, values, with flash attention the keys in 16 bit, without it the values once
       more and the scores of all heads.
    """
    tokens = work.pass_tokens
    queries, keys = model.heads * model.key_length, max(model.kv_heads) * model.key_length
    values = max(model.kv_heads) * model.value_length
    attention = model.embedding + queries + keys + values
    if work.flash_attention:
        mask, attention = tokens // 2, attention + keys // 2
    else:
        mask, attention = tokens, attention + values + model.heads * tokens
    feed_forward = 2 * model.embedding + model.feed_forward * (3 if model.is_gated else 1)
    return tokens * (model.embedding + mask + max(attention, feed_forward))


def _operation_bytes(model: ModelSpec, work: Workload) -> int:
    """Size what matrix products work in: activations in the form that the weights are multiplied with (ggml_graph_plan).

    Without flash attention the scores are multiplied with the values, in their 16 bit.
    """
    of_one = _WIDE_ACTIVATION_BYTES if model.is_unquantized else _NARROW_ACTIVATION_BYTES
    activations = max(model.embedding, model.feed_forward) * of_one
    scores = 0.0
    if not work.flash_attention:
        keys = work.pass_tokens if model.is_encoder else padded_context(work.context_tokens)
        scores = model.heads * keys * _WIDE_ACTIVATION_BYTES
    return round(work.pass_tokens * max(activations, scores))


def output_bytes(model: ModelSpec, work: Workload) -> int:
    """Size what is kept of a pass (llama-context.cpp, output_reserve), and the candidates drawn from.

    Logits of each slot's token. Of whole texts there is room for logits and vectors of every token, whether the model
    makes them or not.
    """
    if model.embedder is not None:
        return work.output_tokens * (model.vocabulary + model.embedder.vector_length) * _FLOAT_BYTES
    return model.vocabulary * (work.output_tokens * _FLOAT_BYTES + _CANDIDATE_BYTES)


def vocabulary_bytes(model: ModelSpec) -> int:
    """Size the tables of tokens and merges."""
    return model.vocabulary * _TOKEN_BYTES + model.merges * _MERGE_BYTES


def copied_bytes(model: ModelSpec, *, variant: str, is_pinned: bool) -> int:
    """Size the weights that are in memory twice.

    Some variants copy weights into an order of their own. The file's pages of what was copied are let go while the
    model loads (edgeserve, engine/mapped_pages.py), so that such a model takes no more memory than another, but for two
    cases: embeddings that are the output matrix too are looked up as they are and multiplied as copied; and mlock
    holds the file's pages.

    Args:
        model: The model as it is in the image.
        variant: Variant of the engine that the processor loads.
        is_pinned: Whether the mapped file is locked in memory.
    """
    kinds = _REPACKED.get(variant, frozenset[str]())
    copied = {
        tensor.name: tensor.size_bytes
        for tensor in model.tensors
        if tensor.type in kinds and len(tensor.shape) > 1 and tensor.shape[1] % _REPACKED_ROWS == 0
    }
    embeddings = copied.pop("token_embd.weight", 0)
    is_tied = model.has_output and not any(tensor.name == "output.weight" for tensor in model.tensors)
    twice = embeddings if is_tied else 0
    return twice + (sum(copied.values()) if is_pinned else 0)

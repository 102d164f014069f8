"""What planning needs to know of a model, taken from its GGUF header."""

import re
from dataclasses import dataclass, replace

from edgebuild.errors import ModelError
from edgebuild.gguf import GgufHeader, Tensor
from edgebuild.gguf_shards import ShardName
from edgebuild.gguf_types import FILE_TYPES, TENSOR_TYPES
from edgebuild.tensor_types import Traits, stored_bytes, tensor_types

_SIXTEEN_BIT = frozenset({"F32", "F16", "BF16"})
# What llama.cpp writes of its own (llama-quant.cpp, llama_model_quantize_impl), each a key, a type and 32 bits.
_KEYS_OF_QUANTIZING = ("general.quantization_version", "general.file_type")
# Architectures that say by an interval which blocks have attention.
_EVERY_FOURTH = frozenset({"qwen3next", "qwen35", "qwen35moe"})
_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
# Those without a key/value cache whose vectors are of use (llama-model.cpp, create_memory); only the last has an output matrix.
_ENCODERS = frozenset(
    {
        "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "modern-bert",
        "gemma-embedding",
    }
)  # fmt: skip
_POOLINGS = {1: "mean", 2: "cls", 3: "last"}  # enum llama_pooling_type, llama.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """What a model makes that embeds texts; such a model generates none.

    Attributes:
        pooling: Of which tokens' vectors that of a text is made: "mean" of all, "cls" for the first, "last".
        vector_length: Numbers in a text's vector.
    """

    pooling: str
    vector_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model, as far as planning goes.

    Attributes:
        name: Name for people, labels and the API, e.g. "edge-alert-4m"; letters, digits, '.', '_' and '-'.
        file_name: Name of the file inside the image.
        architecture: llama.cpp's name of the architecture, e.g. "llama".
        quantization: llama.cpp's name of the file's type, e.g. "Q4_K_M".
        licence: Licence as the header states it, or "".
        parameters: Number of weights.
        tensors: The tensors, in the file's order.
        header_bytes: Bytes before the tensors' data, alignment left out, as they are once llama.cpp has quantised the file.
        file_bytes: Size of the file.
        layers: Number of blocks.
        kv_heads: Key/value heads of each block; shape (layers,).
        heads: Attention heads of the block that has most.
        query_groups: Attention heads of the first block that share one key/value head.
        recurrent_layers: Blocks that keep a state instead of keys and values, or beside them.
        state_length: Elements of such a state.
        experts: Experts of a feed-forward layer; 0 where there are none.
        key_length: Elements of one key.
        value_length: Elements of one value.
        embedding: Elements of the hidden state.
        feed_forward: Elements of the widest inner layer; of experts, of those that one token goes through.
        vocabulary: Number of tokens.
        merges: Number of the tokenizer's merges; 0 where it has none.
        context_trained: Longest sequence the model was trained for, in tokens.
        has_chat_template: Whether the header carries a chat template.
        embedder: What it makes of texts if it embeds them instead of generating any.
    """

    name: str
    file_name: str
    architecture: str
    quantization: str
    licence: str
    parameters: int
    tensors: tuple[Tensor, ...]
    header_bytes: int
    file_bytes: int
    layers: int
    kv_heads: tuple[int, ...]
    heads: int
    query_groups: int
    recurrent_layers: int
    state_length: int
    experts: int
    key_length: int
    value_length: int
    embedding: int
    feed_forward: int
    vocabulary: int
    merges: int
    context_trained: int
    has_chat_template: bool
    embedder: Embedder | None = None

    @property
    def is_encoder(self) -> bool:
        """Whether it sees a text as a whole and keeps nothing of it."""
        return self.architecture in _ENCODERS

    @property
    def has_output(self) -> bool:
        """Whether it has an output matrix, its own or the embeddings once more."""
        return not self.is_encoder or self.architecture == "gemma-embedding"

    @property
    def is_gated(self) -> bool:
        """Whether feed-forward layers have a gate, as a matrix of its own or as a part of another."""
        return any(
            ".ffn_gate." in tensor.name
            or (tensor.name.endswith(".ffn_up.weight") and tensor.shape[1] > self.feed_forward)
            for tensor in self.tensors
        )

    @property
    def is_unquantized(self) -> bool:
        """Whether the weights are still 16 or 32 bit, so that quantising them loses nothing twice."""
        return self.quantization in _SIXTEEN_BIT


def make_model_spec(header: GgufHeader, *, file_name: str) -> ModelSpec:
    """Gather what planning needs from a header.

    Args:
        header: The header.
        file_name: Name of the file, from which the model is named when its header gives no name.

    Raises:
        ModelError: The header lacks a value that every text model has, or describes no text model.
    """
    return _Facts(header, file_name).spec()


def estimate_quantized(model: ModelSpec, quantization: str, *, has_matrix: bool = False) -> ModelSpec:
    """Describe the model as llama.cpp would make it in another type.

    Args:
        model: The model; one that is not in 16 or 32 bit is what it is.
        quantization: llama.cpp's name of the type.
        has_matrix: Whether it is made with an importance matrix.
    """
    if quantization == model.quantization:
        return model
    traits = Traits(
        architecture=model.architecture,
        layers=model.layers,
        query_groups=model.query_groups,
        experts=model.experts,
    )
    kinds = tensor_types(model.tensors, quantization=quantization, traits=traits, has_matrix=has_matrix)
    tensors = tuple(
        replace(tensor, type=kind, size_bytes=stored_bytes(tensor, kind))
        for tensor, kind in zip(model.tensors, kinds, strict=True)
    )
    return replace(
        model,
        quantization=quantization,
        file_name=quantized_file_name(model.file_name, quantization),
        tensors=tensors,
        file_bytes=_aligned(model.header_bytes) + sum(_aligned(tensor.size_bytes) for tensor in tensors),
    )


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


def slug(text: str) -> str:
    """Make a name fit for labels, tags and file names: letters, digits, '.', '_', '-'; at most 80."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80] or "model"


def gguf_file_name(text: str) -> str:
    """Make a file's name fit for images and the store: see `slug`; it ends in ".gguf", after the number of a shard."""
    shard = ShardName.parse(text)
    if shard is not None:
        return str(replace(shard, stem=slug(shard.stem)))
    return slug(text.removesuffix(".gguf")) + ".gguf"


def whole_file_name(text: str) -> str:
    """Name the model's file as if it were one: "a-00001-of-00003.gguf" is of "a.gguf"."""
    shard = ShardName.parse(text)
    return text if shard is None else f"{shard.stem}.gguf"


class _Facts:
    """The header, asked by short names with the architecture's prefix."""

    def __init__(self, header: GgufHeader, file_name: str) -> None:
        self._header = header
        self._file_name = file_name
        self._architecture = self._text("general.architecture")
        if not self._architecture:
            raise self._unusable("general.architecture is missing")

    def spec(self) -> ModelSpec:
        if self._number("split.count", 1) > 1:
            raise self._unusable(
                "it is one of several files of a model",
                hint="give all of them under llama.cpp's names (NAME-00001-of-00003.gguf, …), or join them with its gguf-split --merge",
            )
        layers = self._positive("block_count")
        embedding = self._positive("embedding_length")
        heads_of = self._per_layer("attention.head_count", layers, 0)
        heads = max(heads_of)
        if heads < 1:
            raise self._unusable("it has no attention heads, so its memory cannot be planned")
        kv_heads = self._per_layer("attention.head_count_kv", layers, heads)
        recurrent = self._recurrent(layers, kv_heads)
        if self._architecture != "falcon-h1":  # the one whose layers have both
            kv_heads = tuple(
                0 if is_recurrent else own for own, is_recurrent in zip(kv_heads, recurrent, strict=True)
            )
        return ModelSpec(
            name=slug(self._text("general.name") or _stem(self._file_name)),
            file_name=gguf_file_name(self._file_name),
            architecture=self._architecture,
            quantization=self._quantization(),
            licence=self._text("general.license"),
            parameters=sum(_elements(tensor.shape) for tensor in self._header.tensors),
            tensors=self._header.tensors,
            header_bytes=self._header.header_bytes
            + sum(8 + len(key) + 8 for key in _KEYS_OF_QUANTIZING if key not in self._header.metadata),
            file_bytes=self._header.file_bytes,
            layers=layers,
            kv_heads=kv_heads,
            heads=heads,
            query_groups=heads_of[0] // kv_heads[0] if kv_heads[0] else 0,
            recurrent_layers=sum(recurrent),
            state_length=self._state_length(embedding),
            experts=self._own_number("expert_count", 0),
            key_length=self._own_number("attention.key_length", embedding // heads),
            value_length=self._own_number("attention.value_length", embedding // heads),
            embedding=embedding,
            feed_forward=max(
                *self._per_layer("feed_forward_length", layers, 4 * embedding),
                self._own_number("expert_used_count", 0) * self._own_number("expert_feed_forward_length", 0),
            ),
            vocabulary=self._vocabulary(),
            merges=self._header.array_lengths.get("tokenizer.ggml.merges", 0),
            context_trained=self._positive("context_length"),
            has_chat_template=bool(self._text("tokenizer.chat_template")),
            embedder=self._embedder(embedding),
        )

    def _embedder(self, embedding: int) -> Embedder | None:
        """Tell whether the model embeds texts, by the rule of the server (edgeserve, engine/opening.py)."""
        pooling = self._own_number("pooling_type", 0)
        if pooling:
            if pooling not in _POOLINGS:
                raise self._unusable(
                    "it ranks texts, which the server does not do",
                    hint="give a model that generates or embeds texts",
                )
            length = self._own_number("embedding_length_out", 0) or embedding
            return Embedder(pooling=_POOLINGS[pooling], vector_length=length)
        is_causal = self._header.metadata.get(f"{self._architecture}.attention.causal", True)
        if self._architecture in _ENCODERS or not is_causal:
            raise self._unusable(
                "it generates no text, and its header does not say how to make one vector of a text",
                hint=f"if it was trained to embed texts, convert it again with what says so ({self._architecture}.pooling_type)",
            )
        return None

    def _recurrent(self, layers: int, kv_heads: tuple[int, ...]) -> tuple[bool, ...]:
        """Tell which blocks keep a state (llama.cpp src/models, `is_recr_impl`)."""
        listed = self._header.metadata.get(f"{self._architecture}.attention.recurrent_layers")
        if isinstance(listed, tuple) and len(listed) == layers:
            return tuple(bool(item) for item in listed)
        if self._architecture in _EVERY_FOURTH:
            interval = self._own_number("full_attention_interval", 4) or 4
            return tuple((layer + 1) % interval != 0 for layer in range(layers))
        if self._architecture == "falcon-h1":
            return (True,) * layers
        return tuple(not heads for heads in kv_heads)

    def _state_length(self, embedding: int) -> int:
        """Count what such a block keeps of one sequence (llama-hparams.cpp, n_embd_r and n_embd_s)."""
        if cached := self._own_number("shortconv.l_cache", 0):
            return embedding * (cached - 1)
        inner, state = self._own_number("ssm.inner_size", 0), self._own_number("ssm.state_size", 0)
        convolved = inner + 2 * self._own_number("ssm.group_count", 0) * state
        return max(0, self._own_number("ssm.conv_kernel", 0) - 1) * convolved + state * inner

    def _quantization(self) -> str:
        """Take the declared file type if the header has one, else the type that holds most of the weights."""
        declared = self._header.metadata.get("general.file_type")
        if isinstance(declared, int) and declared in FILE_TYPES:
            return FILE_TYPES[declared]
        by_type: dict[str, int] = {}
        for tensor in self._header.tensors:
            by_type[tensor.type] = by_type.get(tensor.type, 0) + tensor.size_bytes
        if not by_type:
            raise self._unusable(
                "it holds no tensors", hint="this is a vocabulary or metadata file; give the model itself"
            )
        return max(by_type, key=lambda name: by_type[name])

    def _vocabulary(self) -> int:
        tokens = self._header.array_lengths.get("tokenizer.ggml.tokens", 0)
        if not tokens:
            raise self._unusable(
                "it holds no tokenizer", hint="convert it again with its tokenizer files beside the weights"
            )
        return max(tokens, self._own_number("vocab_size", tokens))

    def _per_layer(self, key: str, layers: int, default: int) -> tuple[int, ...]:
        value = self._header.metadata.get(f"{self._architecture}.{key}", default)
        if isinstance(value, tuple):
            if len(value) != layers:
                raise self._unusable(f"{key} has {len(value)} values for {layers} layers")
            return tuple(self._bounded(key, item) for item in value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._unusable(f"{key} is {value!r}, not a whole number")
        return (self._bounded(key, value),) * layers

    def _positive(self, key: str) -> int:
        value = self._own_number(key, 0)
        if value < 1:
            raise self._unusable(f"{self._architecture}.{key} is missing")
        return value

    def _own_number(self, key: str, default: int) -> int:
        return self._number(f"{self._architecture}.{key}", default)

    def _number(self, key: str, default: int) -> int:
        value = self._header.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._unusable(f"{key} is {value!r}, not a whole number")
        return self._bounded(key, value)

    def _bounded(self, key: str, value: int) -> int:
        # Larger than any dimension of any model; keeps the arithmetic of planning in a sane range.
        if not 0 <= value < 2**31 or (key.endswith("block_count") and value > 4096):
            raise self._unusable(f"{key} is {value}")
        return value

    def _text(self, key: str) -> str:
        value = self._header.metadata.get(key, "")
        return value if isinstance(value, str) else ""

    def _unusable(
        self, what: str, *, hint: str = "give the GGUF file of a text model, made by a current llama.cpp"
    ) -> ModelError:
        return ModelError(f"{self._file_name}: {what}", hint=hint)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _stem(file_name: str) -> str:
    """Take the file's name without ending and without its quantisation: "demo.Q4_K_M.gguf" is called "demo"."""
    stem = file_name.removesuffix(".gguf")
    types = sorted(
        {*FILE_TYPES.values(), *(name for name, _, _ in TENSOR_TYPES.values())}, key=len, reverse=True
    )
    return re.sub(rf"[.-](?:{'|'.join(types)})$", "", stem, flags=re.IGNORECASE)


def quantized_file_name(file_name: str, quantization: str) -> str:
    """Name the quantised version of a file: "demo.F16.gguf" becomes "demo.Q4_K_M.gguf"."""
    return f"{slug(_stem(file_name))}.{quantization}.gguf"

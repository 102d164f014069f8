"""Which type each tensor gets when llama.cpp quantises a model, so that the size is known before anything is made.

These are the rules of `llama_model_quantize`: a file type names a default, and the tensors that matter most get more
bits than that. Bits per weight of published models are no substitute: small models have large vocabularies, and rows
that no block of 256 divides fall back to larger types. A test compares with files that the library made. Rules of
architectures that no edge device runs (glm5-next, bailingmoe3) are left out.

Source: llama.cpp src/llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type_impl, tensor_type_fallback,
tensor_requires_imatrix, llama_ftype_get_default_type) of the engine's release.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgebuild.errors import PlanError
from edgebuild.gguf import Tensor
from edgebuild.gguf_types import BLOCKS

# Types that leave numbers as they are take no mixture.
_PLAIN = frozenset({"F32", "F16", "BF16"})
DEFAULT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0")},
        **{name: name for name in ("Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS")},
        **{name: name for name in ("IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K")},
        "Q5_K_M": "Q5_K",
        "Q5_K_S": "Q5_K",
        "Q4_K_M": "Q4_K",
        "Q4_K_S": "Q4_K",
        "Q3_K_L": "Q3_K",
        "Q3_K_M": "Q3_K",
        "Q3_K_S": "Q3_K",
        "Q2_K_S": "Q2_K",
        "IQ3_M": "IQ3_S",
        "IQ3_XS": "IQ3_S",
        "IQ2_M": "IQ2_S",
        "IQ2_S": "IQ2_XS",
        "MXFP4_MOE": "MXFP4",
    }
)
_LOWEST = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"})
_EMBEDDINGS = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),
}
_FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
# Rows that no block of this size divides stay in 16 bit.
_SMALL_BLOCK = 32
_OF_EIGHT_EXPERTS = frozenset({
    "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS"
})  # fmt: skip
_ATTENTION_OUTPUT = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
_QUERY_KEY = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
# Parts of names of matrices that stay as they are: small, or looked into by position.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight",
    "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd",
    "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
_KEPT_WHOLE = frozenset({"position_embd.weight", "token_types.weight"})
# In this order, as llama.cpp looks for them in a name.
_CATEGORIES = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
_LAYER = re.compile(r"blk\.([0-9]+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the rules ask of a model besides its tensors.

    Attributes:
        architecture: llama.cpp's name of it.
        layers: Number of blocks.
        query_groups: Attention heads that share one key/value head, in the first block.
        experts: Experts of a feed-forward layer; 0 where there are none.
    """

    architecture: str
    layers: int
    query_groups: int
    experts: int


def tensor_types(
    tensors: tuple[Tensor, ...], *, quantization: str, traits: Traits, has_matrix: bool = False
) -> tuple[str, ...]:
    """Tell the type that each tensor gets.

    Args:
        tensors: The 16- or 32-bit tensors.
        quantization: llama.cpp's name of the file's type, one of `DEFAULT_TYPES`.
        traits: The model.
        has_matrix: Whether there is an importance matrix, with which some tensors need fewer bits.

    Returns:
        ggml's names of types, in the order of `tensors`.

    Raises:
        PlanError: A tensor cannot be had in that type, nor in one near it.
    """
    rules = _Rules(quantization, traits, has_matrix=has_matrix, names={tensor.name for tensor in tensors})
    # The order in which llama.cpp goes through them (llama-model-loader.h, weight_name_comparer): it counts them.
    order = sorted(
        range(len(tensors)), key=lambda index: (_layer(tensors[index].name), tensors[index].name.encode())
    )
    chosen = {index: rules.type_of(tensors[index]) for index in order}
    return tuple(chosen[index] for index in range(len(tensors)))


def stored_bytes(tensor: Tensor, kind: str) -> int:
    """Size a tensor's data in another type, in bytes."""
    block, block_bytes = BLOCKS[kind]
    rows = 1
    for length in tensor.shape[1:]:
        rows *= length
    return tensor.shape[0] // block * block_bytes * rows


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "token_embd"
    return next((category for part, category in _CATEGORIES if part in name), "")


def _is_quantized(tensor: Tensor) -> bool:
    name = tensor.name
    return (
        any(length > 1 for length in tensor.shape[1:])
        and name.endswith("weight")
        and name not in _KEPT_WHOLE
        and not any(part in name for part in _KEPT)
    )


def _more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is one of the first or last eighth, or every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


class _Rules:
    """llama_tensor_get_type_impl; it counts the tensors of a category, so each is asked for once, in order."""

    def __init__(self, quantization: str, traits: Traits, *, has_matrix: bool, names: set[str]) -> None:
        self._file_type = quantization
        self._default = DEFAULT_TYPES[quantization]
        self._traits = traits
        self._has_matrix = has_matrix
        self._is_tied = "output.weight" not in names
        self._values = sum(_category(name) == "attn_v" for name in names)
        self._value = self._down = self._gate = self._up = 0

    def type_of(self, tensor: Tensor) -> str:
        if not _is_quantized(tensor):
            return tensor.type
        if self._default in _PLAIN:
            return self._default
        return _fitting(self._mixture(tensor, _category(tensor.name)), tensor)

    def _mixture(self, tensor: Tensor, category: str) -> str:  # noqa: C901, PLR0911 - one line a case, as in llama.cpp
        if category == "output" or (self._is_tied and category == "token_embd"):
            return self._output(tensor.shape[0])
        if self._file_type == "MXFP4_MOE":
            return "MXFP4" if len(tensor.shape) > 2 and tensor.shape[2] > 1 else "Q8_0"
        if category == "token_embd":
            return _EMBEDDINGS.get(self._file_type, self._default)
        if self._file_type in _LOWEST:
            return self._lowest(category)
        match category:
            case "attn_v":
                return self._attention_value()
            case "attn_k" if self._traits.experts == 8:
                return "Q8_0"
            case "attn_k" | "attn_q":
                return _QUERY_KEY.get(self._file_type, self._default)
            case "ffn_down":
                return self._feed_forward_down(tensor.name)
            case "attn_output":
                return self._attention_output()
            case "ffn_gate" | "ffn_up":
                return self._feed_forward(tensor.name, category)
            case _:
                return self._default

    def _output(self, columns: int) -> str:
        if self._file_type == "MXFP4_MOE" or self._is_falcon or columns % BLOCKS[self._default][0]:
            return "Q8_0"
        if self._file_type in _LOWEST or self._file_type == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if self._default == "Q8_0" else "Q6_K"

    def _lowest(self, category: str) -> str:  # noqa: PLR0911 - one line a case, as in llama.cpp
        wider = self._file_type in {"IQ2_S", "IQ2_M"}
        match category:
            case "attn_v":
                self._value += 1
                if self._traits.query_groups >= 4 or self._traits.experts >= 4:
                    return "Q4_K"
                return "IQ3_S" if wider else "Q2_K"
            case "attn_k" if self._traits.experts == 8:
                return "Q4_K"
            case "ffn_down":
                self._down += 1
                if self._down - 1 < self._traits.layers // 8:
                    return "IQ3_S" if wider else "Q2_K"
            case "attn_output" if self._traits.experts == 8:
                return "Q5_K"
            case "attn_output" if wider:
                return "IQ3_S"
            case "attn_output" if self._file_type in {"IQ1_S", "IQ1_M"}:
                return "IQ2_XXS"
        return self._default

    def _attention_value(self) -> str:
        nth, self._value = self._value, self._value + 1
        chosen = self._attention_value_of(nth)
        # Eight heads share each of these in the models of 70 B, so that more bits cost little.
        if self._is_seventy_billion and chosen in {"Q3_K", "Q4_K"}:
            chosen = "Q5_K"
        return "Q8_0" if self._traits.experts == 8 else chosen

    def _attention_value_of(self, nth: int) -> str:  # noqa: PLR0911 - one line a case, as in llama.cpp
        grouped = self._traits.query_groups >= 4
        match self._file_type:
            case "Q2_K":
                return "Q4_K" if grouped else "Q3_K"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if grouped:
                return "Q4_K"
            case "IQ3_XXS":
                return "Q4_K" if grouped else ("IQ3_XXS" if self._has_matrix else "IQ3_S")
            case "IQ3_M":
                return "Q4_K"
            case "Q3_K_M":
                return "Q5_K" if nth < 2 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if grouped:
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _more_bits(nth, self._values):
                return "Q6_K"
            case "Q4_K_S" if nth < 4:
                return "Q5_K"
        return self._default

    def _feed_forward_down(self, name: str) -> str:  # noqa: C901, PLR0911 - one line a case, as in llama.cpp
        nth, self._down = self._down, self._down + 1
        layer, layers = (_layer(name) if self._traits.experts > 1 else nth), self._traits.layers
        if self._is_falcon and (chosen := self._falcon_down(layer, layers)):
            return chosen
        first, more = layer < layers // 8, _more_bits(layer, layers)
        match self._file_type:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if first:
                return "Q4_K"
            case "IQ3_XXS" if not self._has_matrix:
                return "Q4_K" if first else "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if layer < layers // 16 else "Q4_K"
            case "IQ3_M" if first or (self._traits.experts == 8 and more):
                return "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if more:
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if first and not self._has_matrix:
                return "Q5_K"
            case "Q4_K_S" if first and not self._is_falcon:
                return "Q5_K"
            case "Q4_0" if first and self._has_matrix:
                return "Q4_1"
            case "Q5_0" if first and self._has_matrix:
                return "Q5_1"
        return self._default

    def _falcon_down(self, layer: int, layers: int) -> str:
        first, more = layer < layers // 16, _more_bits(layer, layers)
        chosen = {
            "Q3_K_M": "Q5_K" if first else ("Q4_K" if more else "Q3_K"),
            "Q3_K_L": "Q4_K",
            "Q4_K_M": "Q6_K" if first else ("Q5_K" if more else "Q4_K"),
        }
        return chosen.get(self._file_type, "")

    def _attention_output(self) -> str:
        if self._is_falcon:
            return "Q4_K" if self._file_type == "Q3_K_L" else self._default
        if self._traits.experts == 8:
            return "Q5_K" if self._file_type in _OF_EIGHT_EXPERTS else self._default
        return _ATTENTION_OUTPUT.get(self._file_type, self._default)

    def _feed_forward(self, name: str, category: str) -> str:
        if category == "ffn_gate":
            nth, self._gate = self._gate, self._gate + 1
        else:
            nth, self._up = self._up, self._up + 1
        layer, layers = (_layer(name) if self._traits.experts > 1 else nth), self._traits.layers
        is_inner = layers // 8 <= layer < 7 * layers // 8
        return "IQ3_XXS" if self._file_type == "IQ3_XS" and is_inner else self._default

    @property
    def _is_falcon(self) -> bool:
        return self._traits.architecture == "falcon"

    @property
    def _is_seventy_billion(self) -> bool:
        traits = self._traits
        is_grouped = traits.architecture != "llama" or traits.query_groups > 1
        return (
            traits.layers == 80 and traits.architecture in {"llama", "deci", "qwen2", "olmo"} and is_grouped
        )


def _fitting(kind: str, tensor: Tensor) -> str:
    """Return a type whose blocks divide the rows (tensor_type_fallback)."""
    columns, block = tensor.shape[0], BLOCKS[kind][0]
    if columns % block == 0:
        return kind
    if block > _SMALL_BLOCK and kind not in _FALLBACKS:
        raise PlanError(
            f"tensor {tensor.name} cannot be made {kind}: its rows of {columns} are no multiple of {block}",
            hint="take another type, e.g. Q8_0",
        )
    smaller = _FALLBACKS.get(kind, kind)
    return smaller if columns % BLOCKS[smaller][0] == 0 else "F16"

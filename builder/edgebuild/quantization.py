"""The types that weights can be quantised to, what each costs in quality, and which need an importance matrix.

Quality is the mean Kullback-Leibler divergence of next-token distributions from those of the 16-bit model, in nats, as
measured on Llama 3 8B by llama.cpp (tools/perplexity/README.md, "LLaMA 3 8b Scoreboard", revision f364eb6f). It orders
types better than bits per weight, which would put Q5_1 (5.65 GiB) above Q5_K_M (5.33 GiB, 40 % less divergence) and
Q4_1 above Q4_K_M; and better than perplexity, in which errors of both signs cancel. Small models lose more in figures,
but in the same order. One model's figures are no promise for another: `edgebuild` measures the model in hand where it is
asked to.
"""

from collections.abc import Mapping
from types import MappingProxyType

from edgebuild.tensor_types import DEFAULT_TYPES

AUTO = "auto"

# Measured without an importance matrix.
_PLAIN_LOSS = {
    "F32": 0.0,
    # BF16 against F16, the same page; far below what any other type loses.
    "F16": 0.000_025,
    "BF16": 0.000_025,
    "Q8_0": 0.001_355,
    "Q6_K": 0.005_452,
    "Q5_K_M": 0.010_762,
    "Q5_K_S": 0.016_595,
    "Q5_1": 0.018_045,
    "Q5_0": 0.022_239,
    "Q4_K_M": 0.031_273,
    "Q4_K_S": 0.043_136,
    "Q4_1": 0.071_683,
    "Q4_0": 0.071_940,
    "Q3_K_L": 0.087_176,
    "Q3_K_M": 0.101_913,
    "Q3_K_S": 0.228_217,
    "Q2_K": 0.445_132,
}
# Measured with one ("WT 10m").
_MATRIX_LOSS = {
    "Q4_K_M": 0.028_152,
    "Q4_K_S": 0.031_951,
    "IQ4_NL": 0.035_742,
    "IQ4_XS": 0.036_334,
    "Q3_K_L": 0.073_077,
    "Q3_K_M": 0.084_358,
    "IQ3_M": 0.102_534,
    "IQ3_S": 0.111_278,
    "IQ3_XS": 0.138_693,
    "IQ3_XXS": 0.183_625,
    "Q3_K_S": 0.199_821,
    "IQ2_M": 0.325_989,
    "Q2_K": 0.332_223,
    "Q2_K_S": 0.403_360,
    "IQ2_S": 0.439_197,
    "IQ2_XS": 0.546_290,
    "IQ2_XXS": 0.812_022,
    "IQ1_M": 1.393_084,
    "IQ1_S": 2.254_554,
}
# What Q4_K_S, the nearest type of 4 bit that was measured both ways, loses more without a matrix than with one.
_WITHOUT_MATRIX = 1.35
# For models trained in them (ternary, MXFP4 experts); of any other model they leave next to nothing. No figure is
# published, so they come after everything else, the larger first, and `auto` never takes them unasked.
_SPECIAL = ("MXFP4_MOE", "TQ2_0", "Q2_0", "TQ1_0", "Q1_0")
_SPECIAL_LOSS = 10.0

# llama.cpp, tensor_requires_imatrix: file types that give such a type to tensors other than embeddings and output.
_NEED_MATRIX = frozenset(
    {"Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}
)


def needs_matrix(quantization: str) -> bool:
    """Whether llama.cpp makes this type with an importance matrix only."""
    return quantization in _NEED_MATRIX


def quality_loss(quantization: str, *, has_matrix: bool = False) -> float:
    """Tell what a type costs: mean Kullback-Leibler divergence in nats; for ordering, not a promise for a model."""
    if quantization in _SPECIAL:
        return _SPECIAL_LOSS + _SPECIAL.index(quantization)
    if has_matrix and quantization in _MATRIX_LOSS:
        return _MATRIX_LOSS[quantization]
    if quantization in _PLAIN_LOSS:
        return _PLAIN_LOSS[quantization]
    return _MATRIX_LOSS[quantization] * (1.0 if needs_matrix(quantization) else _WITHOUT_MATRIX)


# All of them, the best first.
QUANTIZATIONS: tuple[str, ...] = tuple(
    sorted(DEFAULT_TYPES, key=lambda name: (quality_loss(name), list(DEFAULT_TYPES).index(name)))
)

# What `auto` looks at where the profile names nothing: 16 bit, and the K-quants. Q5_1, Q5_0, Q4_1 and Q4_0 are larger than
# a K-quant of better quality; types with code books (IQ…) take several times as long on processors like these.
AUTO_QUANTIZATIONS: tuple[str, ...] = (
    "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"
)  # fmt: skip

# Of a key/value cache, weights being 16 bit: f16 and q8_0 from llama.cpp pull request 7412 (Llama 3 8B; K and V alike, less
# what f16 itself differs there). q4_0 is not held to what was measured on texts of 512 tokens, since its error grows
# with the context: it is put level with weights of Q4_0, so that it comes after any weights of 4 bit K-quants.
KV_LOSS: Mapping[str, float] = MappingProxyType({"f16": 0.0, "q8_0": 0.000_791, "q4_0": _PLAIN_LOSS["Q4_0"]})
# Of a context half as long as wished. It is no error but a promise not kept; set so that it comes after Q4_K_S (0.043) and
# before Q4_0, Q3_K_L (0.07 to 0.09) and a cache of q4_0: rather half the context than weights of 3 bit.
CONTEXT_LOSS = 0.05

"""The sections of a profile about the engine: how it uses memory and processor, and what may be chosen for it."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from edgebuild.documents import Section
from edgebuild.quantities import parse_switch

KvType = Literal["f16", "q8_0", "q4_0"]
# Kept in step with quantization.py by a test: a schema for editors needs them written out.
Quantization = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS",
    "IQ1_M", "IQ1_S", "MXFP4_MOE", "TQ2_0", "TQ1_0", "Q2_0", "Q1_0"
]  # fmt: skip


def _parse_list(value: object) -> object:
    """Take YAML's sequence as the tuple that a frozen document holds."""
    return tuple(value) if isinstance(value, list) else value


class Tuning(Section):
    """How the engine uses memory and processor."""

    kv_type: KvType = Field(
        default="f16",
        description="Element type of the key/value cache; q8_0 takes about half of f16, q4_0 about a quarter",
    )
    flash_attention: Annotated[Literal["auto", "on", "off"], BeforeValidator(parse_switch)] = Field(
        default="auto", description="Flash attention; a quantised cache needs it"
    )
    mmap: bool = Field(default=True, description="Map the model file instead of reading it into memory")
    mlock: bool = Field(
        default=False,
        description="Keep weights and cache from being swapped out; the container must be allowed to (--ulimit memlock=-1)",
    )
    threads: int | None = Field(
        default=None, ge=1, le=512, description="Computing threads; by default one for each of cpu.cores"
    )
    batch_threads: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="Computing threads of passes of more than one token; by default as many as threads",
    )

    @model_validator(mode="after")
    def _check_together(self) -> "Tuning":
        if self.kv_type != "f16" and self.flash_attention == "off":
            raise ValueError(f"kv_type: a cache of {self.kv_type} needs flash attention, which is off")
        return self


class AutoContext(Section):
    """How far the context may be shortened."""

    least: int | None = Field(
        default=None,
        ge=64,
        le=1 << 20,
        description="Shortest context that will do, in tokens; by default all of it",
    )


class Auto(Section):
    """What may be chosen so that a model fits; without it, only the type of the weights, and only by `quantization: auto`."""

    quantizations: Annotated[tuple[Quantization, ...], BeforeValidator(_parse_list)] = Field(
        default=(),
        description="Types of the weights that `quantization: auto` may take; by default 16 bit, Q8_0 and the K-quants",
    )
    kv_types: Annotated[tuple[KvType, ...], BeforeValidator(_parse_list)] = Field(
        default=(),
        description="Element types that the key/value cache may have; by default tuning.kv_type alone",
    )
    context: AutoContext = Field(default=AutoContext(), description="How far the context may be shortened")

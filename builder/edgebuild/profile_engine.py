"""The sections of a profile about the engine: how it uses memory and processor."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from edgebuild.documents import Section
from edgebuild.quantities import parse_switch


class Tuning(Section):
    """How the engine uses memory and processor."""

    kv_type: Literal["f16", "q8_0", "q4_0"] = Field(
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

"""A bench's result as edgeserve writes it (images/server/edgeserve/bench), whichever device it comes from."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgebuild.errors import ImageError
from edgebuild.oci.digest import Digest

_LARGEST_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _on_one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that are no text of one line")
    return text


_Text = Annotated[str, AfterValidator(_on_one_line), Field(max_length=300)]
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]


class Model(_Part):
    """The model measured; `digests` identify its files, none if the device did not know them."""

    name: _Text
    description: _Text
    digests: tuple[_Text, ...]


class Engine(_Part):
    """The engine and its settings."""

    name: _Text
    cpu_variant: _Text
    threads: _Count
    slots: _Count
    context_tokens: _Count
    batch_tokens: _Count
    kv_type: _Text


class Machine(_Part):
    """The machine it ran on."""

    processor: _Text
    cores: _Count
    memory_bytes: _Count | None


class Load(_Part):
    """What was asked of it."""

    prompt_tokens: Annotated[int, Field(ge=1)]
    output_tokens: Annotated[int, Field(ge=2)]
    concurrency: Annotated[int, Field(ge=1)]
    repetitions: Annotated[int, Field(ge=1)]


class Spread(_Part):
    """A figure over all repetitions."""

    median: _Positive
    least: _Positive
    greatest: _Positive


class Energy(_Part):
    """What it drew."""

    source: _Text
    joules: float
    watts: float
    joules_per_token: float


class Figures(_Part):
    """What was measured; docs/profiling.md says what each is."""

    load_s: float
    first_token_s: Spread
    prompt_tokens_per_s: Spread
    generation_tokens_per_s: Spread
    total_tokens_per_s: Spread
    peak_memory_bytes: _Count | None
    anonymous_memory_bytes: _Count | None
    energy: Energy | None
    celsius_before: float | None
    celsius_highest: float | None


class BenchResult(_Part):
    """One run of `edgeserve bench`."""

    schema_version: Literal[1]
    edgeserve: _Text
    profile: _Text
    is_traced: bool
    model: Model
    engine: Engine
    machine: Machine
    load: Load
    figures: Figures

    @property
    def baseline_name(self) -> str:
        """File name under which it is compared with its like: profile, model, engine and load; no path can come of it."""
        digests = self.model.digests
        # One file may be part of two models.
        digest = digests[0] if len(digests) == 1 else str(Digest.of("\n".join(digests).encode()))
        digest = digest.removeprefix("sha256:")[:12] if digests else self.model.name
        load = f"{self.load.prompt_tokens}+{self.load.output_tokens}x{self.load.concurrency}"
        words = (self.profile or "none", digest, self.engine.name, load)
        return "-".join(re.sub(r"[^A-Za-z0-9.+]+", "_", word) for word in words) + ".json"

    def document(self) -> str:
        """Write it as edgeserve did."""
        return self.model_dump_json(indent=2) + "\n"


def parse_result(text: str | bytes, *, place: str) -> BenchResult:
    """Read a result.

    Args:
        text: The JSON document.
        place: Where it comes from, for messages.

    Raises:
        ImageError: It is none; the message says what is wrong first.
    """
    try:
        return BenchResult.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "document"
        raise ImageError(
            f"{place}: not a result of `edgeserve bench --json`: {key}: {first['msg']}",
            hint="give the standard output of `docker run --rm IMAGE bench --json` and nothing else",
        ) from error


def load_result(path: Path) -> BenchResult:
    """Read a result from a file.

    Raises:
        ImageError: It cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be read: {error.strerror}", hint="bring it from the device"
        ) from error
    if len(text) > _LARGEST_BYTES:
        raise ImageError(
            f"{path}: larger than any result", hint="give the output of `edgeserve bench --json`"
        )
    return parse_result(text, place=str(path))

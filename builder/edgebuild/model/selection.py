"""Choosing one GGUF model among several, by the types that the devices want. Pure."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edgebuild.errors import ModelError
from edgebuild.gguf_joined import find_shards
from edgebuild.gguf_shards import ShardName
from edgebuild.gguf_types import FILE_TYPES
from edgebuild.model_spec import whole_file_name

_SIXTEEN_BIT = ("F16", "BF16")
_ALIASES = {"FP16": "F16", "FP32": "F32"}
# Parts of models that are no language models themselves: image projectors, importance matrices, control vectors.
_ASIDE = re.compile(r"(^|[./_-])(mmproj|imatrix|control[-_]vector)", re.IGNORECASE)
_TYPE = re.compile(
    rf"(?<![A-Za-z0-9])({'|'.join(sorted((*FILE_TYPES.values(), *_ALIASES, 'F32'), key=len, reverse=True))})(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A GGUF model in a folder, repository or artifact.

    Attributes:
        file: Path inside it; of a model in several files, the first that is there.
        quantization: Type as its name tells, or "".
    """

    file: str
    quantization: str


def find_candidates(files: Iterable[str]) -> tuple[Candidate, ...]:
    """Pick the language models out of a list of files, sorted by name."""
    found = []
    known: set[tuple[str, int]] = set()
    for file in sorted(files):
        if not file.lower().endswith(".gguf") or _ASIDE.search(file.rpartition("/")[2]):
            continue
        shard = ShardName.parse(file)
        if shard is not None:
            if (shard.stem, shard.count) in known:
                continue
            known.add((shard.stem, shard.count))
        found.append(Candidate(file=file, quantization=quantization_in(file)))
    return tuple(found)


def quantization_in(file: str) -> str:
    """Read llama.cpp's name of a type out of a file's name, the last one in it; "" when there is none."""
    names = _TYPE.findall(whole_file_name(file))
    name = names[-1].upper() if names else ""
    return _ALIASES.get(name, name)


def choose_files(
    files: Collection[str], *, wanted: tuple[str, ...], place: str, hint: str
) -> tuple[str, ...]:
    """Choose the model to bake in and list its files in order; none when there is no GGUF file.

    1. The only one there is.
    2. The only one of the type that all devices want.
    3. The only one in 16 bit, which is then quantised to what each device wants.

    Args:
        files: Everything that is there.
        wanted: Types that the devices want, each once.
        place: What is looked into, for messages.
        hint: How to name one of them; "{file}" in it becomes an example.

    Raises:
        ModelError: The choice is not clear, or files of the model are missing.
    """
    candidates = find_candidates(files)
    if not candidates:
        return ()
    chosen = (
        _only(candidates)
        or (_only(c for c in candidates if (c.quantization,) == wanted))
        or (_only(c for c in candidates if c.quantization in _SIXTEEN_BIT))
    )
    if chosen is None:
        shown = ", ".join(c.file for c in candidates[:_SHOWN])
        more = f" and {len(candidates) - _SHOWN} more" if len(candidates) > _SHOWN else ""
        raise ModelError(
            f"{place} holds {len(candidates)} models, and it is not clear which to take for {', '.join(wanted)}: {shown}{more}",
            hint=hint.replace("{file}", candidates[0].file),
        )
    return find_shards(files, chosen.file, place=place)


def _only(candidates: Iterable[Candidate]) -> Candidate | None:
    found = tuple(candidates)
    return found[0] if len(found) == 1 else None

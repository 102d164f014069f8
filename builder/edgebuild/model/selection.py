"""Choosing one GGUF file among several, by the types that the devices want. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from edgebuild.errors import ModelError
from edgebuild.gguf_types import FILE_TYPES

_SIXTEEN_BIT = ("F16", "BF16")
_ALIASES = {"FP16": "F16", "FP32": "F32"}
_SPLIT = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.gguf$", re.IGNORECASE)
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
        file: Path inside it; of a model in several files, the first.
        parts: Number of files.
        quantization: Type as its name tells, or "".
    """

    file: str
    parts: int
    quantization: str


def find_candidates(files: Iterable[str]) -> tuple[Candidate, ...]:
    """Pick the language models out of a list of files, sorted by name."""
    found = []
    for file in sorted(files):
        if not file.lower().endswith(".gguf") or _ASIDE.search(file.rpartition("/")[2]):
            continue
        split = _SPLIT.search(file)
        if split is None or int(split[1]) == 1:
            parts = int(split[2]) if split else 1
            found.append(Candidate(file=file, parts=parts, quantization=quantization_in(file)))
    return tuple(found)


def quantization_in(file: str) -> str:
    """Read llama.cpp's name of a type out of a file's name, the last one in it; "" when there is none."""
    names = _TYPE.findall(_SPLIT.sub(".gguf", file))
    name = names[-1].upper() if names else ""
    return _ALIASES.get(name, name)


def choose_candidate(
    files: Iterable[str], *, wanted: tuple[str, ...], place: str, hint: str
) -> Candidate | None:
    """Choose the model to bake in; None when there is no GGUF file.

    1. The only one there is.
    2. The only one of the type that all devices want.
    3. The only one in 16 bit, which is then quantised to what each device wants.

    Args:
        files: Everything that is there.
        wanted: Types that the devices want, each once.
        place: What is looked into, for messages.
        hint: How to name one of them; "{file}" in it becomes an example.

    Raises:
        ModelError: The choice is not clear, or the model is in several files.
    """
    candidates = find_candidates(files)
    if not candidates:
        return None
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
    return verify_whole(chosen, place=place)


def verify_whole(candidate: Candidate, *, place: str) -> Candidate:
    """Refuse a model in several files.

    Raises:
        ModelError: It is one.
    """
    if candidate.parts > 1:
        raise ModelError(
            f"{candidate.file} in {place} is a model in {candidate.parts} files",
            hint="fetch them and join them with llama.cpp's gguf-split --merge, or take a type that comes in one file",
        )
    return candidate


def _only(candidates: Iterable[Candidate]) -> Candidate | None:
    found = tuple(candidates)
    return found[0] if len(found) == 1 else None

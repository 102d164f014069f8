"""Headers of safetensors files, checked whole before a converter believes them. No weight is read.

Source: the format's description, safetensors README, "Format": 8 bytes with the header's length (little-endian), the
header as JSON, then the tensors without gaps. Its library takes headers up to 100 MB.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.errors import ModelError

_HEADER_MAX_BYTES = 100_000_000
# Those that the converter reads (conversion/base.py, LazyTorchTensor._dtype_str_map), with bytes per element.
DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "BF16": 2,
    "F16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_HINT = "fetch the file again, whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A tensor as the header describes it.

    Attributes:
        name: Its name.
        dtype: A key of `DTYPE_BYTES`.
        shape: Its lengths, outermost first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether its elements are numbers with a fraction."""
        return self.dtype.startswith(("F", "BF"))


def verify_weights(files: Mapping[str, Path], *, place: str, quantization: str) -> None:
    """Check every header, and that weights which nobody calls quantised are numbers with a fraction.

    Args:
        files: Paths by name.
        place: What they belong to, for messages.
        quantization: How config.json says that they are quantised, or "".

    Raises:
        ModelError: A file is broken, or its weights are of another kind.
    """
    count = 0
    for name, path in sorted(files.items()):
        for entry in read_safetensors(path):
            count += 1
            if not quantization and entry.name.endswith(".weight") and not entry.is_float:
                raise ModelError(
                    f"{place}: {entry.name} in {name} is made of integers ({entry.dtype}), and config.json tells no quantisation",
                    hint="take the 16-bit checkpoint of this model",
                )
    if not count:
        raise ModelError(f"{place}: its safetensors hold no tensors", hint=_HINT)


def read_safetensors(path: Path) -> tuple[TensorEntry, ...]:
    """Read the header of a file and check it against the file's length.

    Raises:
        ModelError: It cannot be read, is cut short, or contradicts itself.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or length > min(size_bytes - 8, _HEADER_MAX_BYTES):
                raise _broken(path, f"its header would have {length} bytes, the file has {size_bytes}")
            raw = file.read(length)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror}", hint="check the file and its permissions"
        ) from error
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise _broken(path, "its header is no JSON object")
    document.pop("__metadata__", None)
    read = [_read_entry(path, name, entry) for name, entry in document.items()]
    _verify_ranges(path, sorted(extent for _, extent in read), size_bytes - 8 - length)
    return tuple(entry for entry, _ in read)


def _read_entry(path: Path, name: str, entry: Any) -> tuple[TensorEntry, tuple[int, int]]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, f"its header describes no tensor under {name!r}") from error
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise _broken(path, f"its header gives {name!r} no lengths")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ModelError(
            f"{path}: {name} has elements of type {dtype}, which llama.cpp's converter does not read",
            hint="take the 16-bit checkpoint of this model",
        )
    if math.prod(shape) * DTYPE_BYTES[dtype] != end - begin:
        raise _broken(path, f"{name} of type {dtype} and shape {tuple(shape)} has {end - begin} bytes")
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape)), (begin, end)


def _verify_ranges(path: Path, extents: list[tuple[int, int]], data_bytes: int) -> None:
    """See that the tensors fill the rest of the file without gap or overlap."""
    reached = 0
    for begin, end in extents:
        if begin != reached:
            raise _broken(path, f"its tensors leave a gap or overlap at byte {min(begin, reached)}")
        reached = end
    if reached != data_bytes:
        raise _broken(path, f"its tensors have {reached} bytes, the file has {data_bytes} for them")


def _broken(path: Path, what: str) -> ModelError:
    return ModelError(f"{path}: not a whole safetensors file: {what}", hint=_HINT)

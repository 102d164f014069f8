"""Hugging Face checkpoints for tests: the demo model's, spread over shards or spoilt, and safetensors files by hand."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebuild.model.source import demo_model_path

DEMO = demo_model_path().parent / "hf"
DTYPES = {"F16": np.float16, "F32": np.float32, "I32": np.int32, "I8": np.int8, "I64": np.int64}
_SHARDS = 3
_NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}

Tensors = Mapping[str, npt.NDArray[Any]]


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a safetensors file whole."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }


def write_tensors(path: Path, tensors: Tensors) -> Path:
    """Write a safetensors file."""
    header: dict[str, Any] = {}
    reached = 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": _NAMES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [reached, reached + values.nbytes],
        }
        reached += values.nbytes
    return write_raw(
        path, json.dumps(header).encode(), b"".join(values.tobytes() for values in tensors.values())
    )


def write_raw(path: Path, header: bytes, data: bytes, *, length: int | None = None) -> Path:
    """Write a header and data, with another length of the header if one is given."""
    told = len(header) if length is None else length
    path.write_bytes(told.to_bytes(8, "little") + header + data)
    return path


def copy_demo(folder: Path, *, without: Iterable[str] = (), config: Mapping[str, Any] | None = None) -> Path:
    """Copy the demo model's checkpoint into a new folder, some files left out, config.json changed."""
    shutil.copytree(DEMO, folder, ignore=lambda _, names: set(without) & set(names))
    if config is not None:
        change_json(folder / "config.json", config)
    return folder


def change_json(path: Path, values: Mapping[str, Any]) -> None:
    """Set values of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(values)))


def shard_demo(folder: Path) -> Path:
    """Copy the demo model's checkpoint with its weights in three files and an index."""
    copy_demo(folder, without=("model.safetensors",))
    tensors = read_tensors(DEMO / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(_SHARDS):
        file = f"model-{number + 1:05d}-of-{_SHARDS:05d}.safetensors"
        held = {name: tensors[name] for name in names[number::_SHARDS]}
        write_tensors(folder / file, held)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder

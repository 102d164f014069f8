"""Importance matrices in both of llama.cpp's formats, and files that are none."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from edgebuild.errors import ModelError
from edgebuild.model.importance import load_matrix

SUMS = {"blk.0.attn_q.weight": (8.0, 2.0, 6.0), "blk.0.ffn_up.weight": (4.0, 12.0)}
TOKENS = 4
MEANS = {name: [value / TOKENS for value in values] for name, values in SUMS.items()}


def write_gguf(path: Path, *, kind: str = "imatrix", counts: bool = True) -> Path:
    writer = GGUFWriter(path, arch="", use_temp_file=False)
    writer.add_string("general.type", kind)
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in SUMS.items():
        writer.add_tensor(f"{name}.in_sum2", np.array([values], dtype=np.float32))
        if counts:
            writer.add_tensor(f"{name}.counts", np.array([[TOKENS]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(*, calls: int = 5) -> bytes:
    data = struct.pack("<i", len(SUMS))
    for name, values in SUMS.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *(value / TOKENS * calls for value in values))
    return data


def test_gguf(tmp_path: Path) -> None:
    matrix = load_matrix(write_gguf(tmp_path / "m.gguf"))
    assert {name: list(values) for name, values in matrix.entries} == MEANS
    assert (matrix.name, matrix.chunks) == ("m.gguf", 7)


def test_the_older_format(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(legacy() + struct.pack("<ii", 9, 8) + b"wiki.txt")
    matrix = load_matrix(path)
    assert {name: list(values) for name, values in matrix.entries} == MEANS
    assert (matrix.chunks, matrix.text) == (9, "wiki.txt")
    path.write_bytes(legacy())
    assert {name: list(values) for name, values in load_matrix(path).entries} == MEANS


def test_a_matrix_is_known_by_its_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one.dat", tmp_path / "other.dat"
    one.write_bytes(legacy())
    other.write_bytes(legacy(calls=6))
    assert load_matrix(one).digest != load_matrix(other).digest


@pytest.mark.parametrize("cut", [0, 3, 4, 10, 40, 60])
def test_what_is_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(legacy()[:cut])
    with pytest.raises(ModelError, match="no importance matrix"):
        load_matrix(path)


@pytest.mark.parametrize(
    "data", [struct.pack("<i", -1), struct.pack("<ii", 1, -5), struct.pack("<ii", 1, 2**31 - 1), b"x" * 64]
)
def test_nonsense_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"m\.dat"):
        load_matrix(path)


def test_gguf_that_is_no_matrix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no importance matrix"):
        load_matrix(write_gguf(tmp_path / "model.gguf", kind="model"))
    with pytest.raises(ModelError, match="no counts"):
        load_matrix(write_gguf(tmp_path / "sums.gguf", counts=False))
    with pytest.raises(ModelError, match="cannot be read"):
        load_matrix(tmp_path / "nowhere.gguf")

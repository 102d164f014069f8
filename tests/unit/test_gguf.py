"""GGUF headers: real ones are read, hostile ones end in one line."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebuild.errors import ModelError
from edgebuild.gguf import GgufHeader, read_gguf_header
from edgebuild.model.source import demo_model_path
from edgebuild.model_spec import make_model_spec


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(*, version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def string_key(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


def read(tmp_path: Path, data: bytes) -> GgufHeader:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return read_gguf_header(path)


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, data)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def outcome(path: Path) -> str:
    """The model's name, or the refusal; anything else that is raised is a bug."""
    try:
        return make_model_spec(read_gguf_header(path), file_name="m.gguf").name
    except ModelError as error:
        return error.message


def test_demo_model_is_read() -> None:
    path = demo_model_path()
    spec = make_model_spec(read_gguf_header(path), file_name=path.name)
    assert spec.architecture == "llama"
    assert spec.is_unquantized
    assert 3_000_000 <= spec.parameters <= 4_000_000
    assert spec.embedding % 256 == 0
    assert spec.has_chat_template
    assert spec.licence == "cc0-1.0"
    assert spec.file_bytes == path.stat().st_size


def test_scalars_arrays_and_tensors(tmp_path: Path) -> None:
    keys = (
        string_key("a", "x")
        + text("n")
        + struct.pack("<II", 4, 7)
        + text("l")
        + struct.pack("<IIQ", 9, 5, 2)
        + struct.pack("<ii", 3, 4)
    )
    vocabulary = text("v") + struct.pack("<IIQ", 9, 8, 3) + text("") + text("b") + text("cc")
    table = tensor("w", (4, 2))
    found = read(tmp_path, header(tensors=1, keys=4) + keys + vocabulary + table + bytes(200))
    assert dict(found.metadata) == {"a": "x", "n": 7, "l": (3, 4)}
    assert dict(found.array_lengths) == {"l": 2, "v": 3}
    assert [(t.name, t.shape, t.type, t.size_bytes) for t in found.tensors] == [("w", (4, 2), "F32", 32)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "it begins with b'PK"),
        (header(version=1) + bytes(50), "GGUF version 1 is not supported"),
        (header(version=3 << 24) + bytes(50), "big-endian"),
        (header(keys=2**60) + bytes(50), "metadata keys"),
        (header(tensors=2**60) + bytes(50), "tensors"),
        (header(keys=1) + struct.pack("<Q", 2**60) + bytes(50), "goes past the end"),
        (header(keys=1) + text("k") + struct.pack("<IQ", 8, 2**63) + bytes(50), "goes past the end"),
        (header(keys=1) + text("k") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(50), "goes past the end"),
        (
            header(keys=1) + text("k") + struct.pack("<IIQ", 9, 8, 2) + struct.pack("<Q", 2**60) + bytes(50),
            "goes past the end",
        ),
        (header(keys=1) + text("k") + struct.pack("<IIQ", 9, 4, 2**60) + bytes(50), "goes past the end"),
        (header(keys=1) + text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(50), "unknown type 9"),
        (header(keys=1) + text("k") + struct.pack("<I", 77) + bytes(50), "unknown type 77"),
        (header(keys=2) + string_key("k", "a") + string_key("k", "b") + bytes(50), "stands there twice"),
        (header(tensors=1) + tensor("w", (2**40, 2**40)) + bytes(50), "impossible shape"),
        (header(tensors=1) + tensor("w", (0,)) + bytes(50), "impossible shape"),
        (header(tensors=1) + tensor("w", (31,), kind=2) + bytes(50), "impossible shape"),
        (header(tensors=1) + tensor("w", (1, 1, 1, 1, 1)) + bytes(50), "5 dimensions"),
        (header(tensors=1) + tensor("w", (4,), kind=999) + bytes(50), "unknown type 999"),
        (header(tensors=1) + tensor("w", (1000,)) + bytes(50), "cut short"),
        (header(tensors=1) + tensor("w", (4,), offset=2**63) + bytes(50), "cut short"),
        (header(keys=1) + text("general.alignment") + struct.pack("<II", 4, 3) + bytes(50), "alignment 3"),
    ],
)
def test_damaged_headers_are_refused_in_one_line(tmp_path: Path, data: bytes, expected: str) -> None:
    assert expected in refused(tmp_path, data)


def test_demo_model_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = demo_model_path().read_bytes()
    for length in (10, 24, 100, 1000, 20_000, len(data) // 2, len(data) - 1):
        refused(tmp_path, data[:length])


def test_folder_and_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.gguf"):
        with pytest.raises(ModelError):
            read_gguf_header(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_of_a_real_header_ends_in_a_header_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    original = demo_model_path().read_bytes()[:60_000]
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 2_000) | st.integers(0, len(changed) - 9))
        changed[at : at + 8] = data.draw(
            st.binary(min_size=8, max_size=8)
            | st.sampled_from([b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x0f"])
        )
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(bytes(changed))
    assert "\n" not in outcome(path)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=400), tensors=st.integers(0, 5), keys=st.integers(0, 5))
def test_arbitrary_bytes_after_a_valid_start(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, tensors: int, keys: int
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(header(tensors=tensors, keys=keys) + body)
    assert "\n" not in outcome(path)


def test_hostile_header_takes_bounded_memory(tmp_path: Path) -> None:
    """A file whose header consists of strings that a reader would keep: refused, far below 100 MB."""
    path = tmp_path / "hostile.gguf"
    with path.open("wb") as file:
        file.write(header(keys=120_000))
        for number in range(400):
            file.write(text(f"key{number}") + struct.pack("<IQ", 8, 1_000_000) + bytes(1_000_000))
    program = (
        "import resource, sys; from pathlib import Path; from edgebuild.gguf import GgufHeader, read_gguf_header; from edgebuild.errors import ModelError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_gguf_header(Path(sys.argv[1]))\n"
        "except ModelError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    message, grown_kib = done.stdout.strip().splitlines()
    assert "larger than any real model" in message
    assert int(grown_kib) < 100_000


def test_large_vocabulary_is_walked_not_kept(tmp_path: Path) -> None:
    count = 200_000
    vocabulary = (
        text("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", 9, 8, count)
        + b"".join(text(f"token{i}") for i in range(count))
    )
    found = read(tmp_path, header(keys=1) + vocabulary + bytes(64))
    assert found.array_lengths["tokenizer.ggml.tokens"] == count
    assert "tokenizer.ggml.tokens" not in found.metadata

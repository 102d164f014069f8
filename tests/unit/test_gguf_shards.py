"""Models cut into shards: gguf's own reader reads each, nothing is lost, and the cuts follow from the file alone."""

import os
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError, PlanError, ToolError
from edgebuild.gguf import read_gguf_header, read_gguf_places
from edgebuild.gguf_joined import read_joined_header
from edgebuild.gguf_shards import MAX_SHARDS, ShardName, cut_gguf
from edgebuild.model.source import demo_model_path
from edgebuild.model_spec import gguf_file_name, whole_file_name
from edgebuild.oci.blob import Blob, FileRange
from edgebuild.oci.copying import copy_hashed
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import known_blob_digest, remember_blob_digest
from edgebuild.oci.tar import model_tar
from edgebuild.progress import SilentProgress
from tests.support.shards import write_shards

KIB = 1 << 10
SPLIT = ("split.no", "split.tensors.count", "split.count")
WriteModel = Callable[..., Path]


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    return model_writer(tmp_path)


def model_writer(folder: Path) -> WriteModel:
    def write(sizes: Sequence[int], *, alignment: int = 32, leftovers: bool = False) -> Path:
        """Write a model of tensors of so many floats each."""
        path = folder / "m.gguf"
        writer = GGUFWriter(path, "llama")
        if alignment != 32:
            writer.add_custom_alignment(alignment)
        if leftovers:  # as `gguf-split --merge` leaves them
            writer.add_uint16("split.no", 0)
        writer.add_name("small")
        writer.add_array("tokenizer.ggml.tokens", ["a", "bb", "ccc"])
        if leftovers:
            writer.add_uint16("split.count", 0)
            writer.add_int32("split.tensors.count", 99)
        for number, size in enumerate(sizes):
            writer.add_tensor(f"blk.{number}.w", np.arange(size, dtype=np.float32) + number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def fields(reader: GGUFReader) -> dict[str, tuple[object, object]]:
    return {
        key: (field.types, field.contents())
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.") and key not in SPLIT
    }


def assert_same_model(whole: Path, shards: Sequence[Path]) -> None:
    """Compare by gguf's reader: metadata are in the first shard, every tensor in one shard, in order."""
    expected, readers = GGUFReader(whole), [GGUFReader(path) for path in shards]
    assert fields(readers[0]) == fields(expected)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    assert [tensor.name for tensor in tensors] == [tensor.name for tensor in expected.tensors]
    for found, wanted in zip(tensors, expected.tensors, strict=True):
        assert found.tensor_type == wanted.tensor_type
        assert list(found.shape) == list(wanted.shape)
        assert found.data.tobytes() == wanted.data.tobytes()
    for number, reader in enumerate(readers):
        values = [reader.fields[key].contents() for key in SPLIT]
        assert values == [number, len(expected.tensors), len(shards)]
        assert [reader.fields[key].types[0].name for key in SPLIT] == ["UINT16", "INT32", "UINT16"]


def test_the_demo_model_in_shards(tmp_path: Path) -> None:
    blobs = cut_gguf(demo_model_path(), shard_bytes=2 << 20)
    assert len(blobs) == 4
    shards = write_shards(blobs, tmp_path / "shards")
    assert_same_model(demo_model_path(), shards)
    whole, joined = read_gguf_header(demo_model_path()), read_joined_header(shards)
    assert joined.tensors == whole.tensors
    assert dict(joined.metadata) == dict(whole.metadata)
    assert dict(joined.array_lengths) == dict(whole.array_lengths)


def test_most_bytes_are_ranges_of_the_file() -> None:
    path = demo_model_path()
    blobs = cut_gguf(path, shard_bytes=2 << 20)
    ranges = [part for blob in blobs for part in blob.parts if isinstance(part, FileRange)]
    assert all(part.path == path for part in ranges)
    made = sum(len(part) for blob in blobs for part in blob.parts if isinstance(part, bytes))
    assert made < 10 * KIB
    # No byte of the file is taken twice.
    ends = sorted((part.offset_bytes, part.offset_bytes + part.size_bytes) for part in ranges)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ends))


@pytest.mark.parametrize(
    ("sizes", "shard_floats", "expected"),
    [
        ((256, 256, 256, 256), 512, [2, 2]),
        ((256, 256, 256), 512, [2, 1]),
        ((1, 1, 1), 8, [1, 1, 1]),  # padded to the alignment, one fills a shard
        ((256, 4096, 256), 512, [1, 1, 1]),  # larger than a shard: one of its own
        ((4096, 256), 512, [1, 1]),
        ((256, 256), 4096, [2]),
    ],
)
def test_where_the_cuts_are(
    write_model: WriteModel, tmp_path: Path, sizes: tuple[int, ...], shard_floats: int, expected: list[int]
) -> None:
    path = write_model(sizes)
    shards = write_shards(cut_gguf(path, shard_bytes=4 * shard_floats), tmp_path / "shards")
    assert [len(GGUFReader(shard).tensors) for shard in shards] == expected
    assert_same_model(path, shards)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 600), min_size=1, max_size=12),
    alignment=st.sampled_from((8, 32, 64, 4096)),
    shard_bytes=st.integers(1, 6000),
    leftovers=st.booleans(),
)
def test_any_model_is_the_same_in_shards(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    alignment: int,
    shard_bytes: int,
    leftovers: bool,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = model_writer(folder)(sizes, alignment=alignment, leftovers=leftovers)
    blobs = cut_gguf(path, shard_bytes=shard_bytes)
    shards = write_shards(blobs, folder / "shards")
    assert_same_model(path, shards)
    assert [blob.parts for blob in cut_gguf(path, shard_bytes=shard_bytes)] == [blob.parts for blob in blobs]
    for shard in shards:  # each can be cut again by whoever reads it: offsets are as llama.cpp wants them
        read_gguf_places(shard)
        assert shard.stat().st_size % min(alignment, 32) == 0


def test_too_many_shards_are_refused(write_model: WriteModel) -> None:
    path = write_model([64] * (MAX_SHARDS + 1))
    with pytest.raises(PlanError, match="would be 101 shards") as caught:
        cut_gguf(path, shard_bytes=256)
    assert "--shard-size" in caught.value.hint


def test_tensors_that_llama_cpp_would_not_find_are_refused(write_model: WriteModel) -> None:
    path = write_model([64, 64])
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"blk.1.w")
    at = entry + len(b"blk.1.w") + 4 + 8 + 4
    assert struct.unpack_from("<Q", data, at) == (256,)
    struct.pack_into("<Q", data, at, 0)
    path.write_bytes(data)
    assert len(read_gguf_header(path).tensors) == 2
    with pytest.raises(ModelError, match=r"'blk.1.w' lies at 0 of the data, not at 256"):
        cut_gguf(path, shard_bytes=256)


def write_blob(blob: Blob, path: Path) -> Digest:
    out = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        with SilentProgress().task("copy") as task:
            return copy_hashed(blob, out, task)
    finally:
        os.close(out)


def test_layers_are_copied_and_hashed_from_the_file(write_model: WriteModel, tmp_path: Path) -> None:
    # Large enough for the way through the kernel.
    path = write_model([5 << 20, 64, 5 << 20])
    blobs = cut_gguf(path, shard_bytes=20 << 20)
    assert len(blobs) == 3
    for number, blob in enumerate(blobs):
        framed = model_tar(blob, f"m-{number}.gguf")
        assert framed.file_bytes == blob.size_bytes
        digest = write_blob(framed.blob, tmp_path / f"{number}.tar")
        written = (tmp_path / f"{number}.tar").read_bytes()
        assert written == framed.before + blob.read() + framed.after
        assert digest == Digest.of(written)
        for offset in (0, 1, 700, 1600, len(written) - 1, len(written)):
            assert b"".join(framed.blob.chunks(offset_bytes=offset)) == written[offset:]


def test_a_file_that_changed_since_is_not_cut(write_model: WriteModel, tmp_path: Path) -> None:
    path = write_model([64, 64])
    first, second = cut_gguf(path, shard_bytes=256)
    write_blob(first, tmp_path / "first")
    size_bytes = path.stat().st_size
    path.write_bytes(bytes(size_bytes))
    with pytest.raises(ToolError, match="changed while it was copied"):
        write_blob(second, tmp_path / "second")
    with pytest.raises(ValueError, match="changed since its header was read"):
        second.read()


def test_every_shard_has_a_seal_of_its_own(write_model: WriteModel, tmp_path: Path) -> None:
    path, store = write_model([64, 64]), Store(tmp_path / "store")
    first, second = cut_gguf(path, shard_bytes=256)
    remember_blob_digest(first, store, Digest.of(first.read()))
    assert known_blob_digest(first, store) == Digest.of(first.read())
    assert known_blob_digest(second, store) is None
    assert known_blob_digest(Blob.of_file(path), store) is None
    assert known_blob_digest(cut_gguf(path, shard_bytes=256)[0], store) == Digest.of(first.read())
    # Cut differently, the first shard holds more.
    assert known_blob_digest(cut_gguf(path, shard_bytes=512)[0], store) is None
    path.touch()
    assert known_blob_digest(cut_gguf(path, shard_bytes=256)[0], store) is None


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("a-00001-of-00003.gguf", ("a", 1, 3)),
        ("q/a.Q8_0-00002-of-00002.GGUF", ("q/a.Q8_0", 2, 2)),
        ("a-00001-of-00003-00002-of-00004.gguf", ("a-00001-of-00003", 2, 4)),
        ("a-1-of-3.gguf", None),
        ("a-00001-of-00003.gguf.part", None),
        ("-00001-of-00003.gguf", None),
        ("a.gguf", None),
    ],
)
def test_names(file: str, expected: tuple[str, int, int] | None) -> None:
    found = ShardName.parse(file)
    assert (None if found is None else (found.stem, found.number, found.count)) == expected
    assert whole_file_name(file) == (file if expected is None else f"{expected[0]}.gguf")


def test_long_names_keep_their_number() -> None:
    name = gguf_file_name(f"{'long name ' * 20}-00002-of-00003.gguf")
    assert name.endswith("-00002-of-00003.gguf")
    assert len(name) <= 80 + 20

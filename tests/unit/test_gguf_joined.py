"""Models in several files: what belongs together is read as one model, everything else ends in one line."""

import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebuild.errors import ModelError
from edgebuild.gguf import read_gguf_header, read_gguf_places
from edgebuild.gguf_joined import find_shards, read_joined_header
from edgebuild.gguf_shards import cut_gguf
from edgebuild.model_spec import make_model_spec
from tests.support.shards import write_shards
from tests.support.tiny_gguf import write_tiny_gguf
from tests.unit.test_gguf import header, tensor, text


def write_parts(whole: Path, folder: Path, *, count: int = 3) -> tuple[Path, ...]:
    """Cut a model into so many files."""
    total = whole.stat().st_size
    cuts = (cut_gguf(whole, shard_bytes=total * share // 100) for share in range(100, 0, -1))
    return write_shards(next(blobs for blobs in cuts if len(blobs) == count), folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("whole") / "m.gguf", dim=64, ff=64)


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> tuple[Path, ...]:
    """Three files."""
    return write_parts(whole, tmp_path / "parts")


def refused(paths: Sequence[Path]) -> str:
    with pytest.raises(ModelError) as caught:
        read_joined_header(paths)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def patch(path: Path, key: str, value: int) -> None:
    """Overwrite the 16 bits of a key's number."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.index(text(key)) + len(text(key)) + 4, value)
    path.write_bytes(data)


def test_the_files_are_one_model(whole: Path, parts: tuple[Path, ...]) -> None:
    joined = make_model_spec(read_joined_header(parts), file_name="m.gguf")
    alone = make_model_spec(read_gguf_header(whole), file_name="m.gguf")
    assert joined.parameters == alone.parameters
    assert joined.file_bytes == sum(path.stat().st_size for path in parts)
    assert joined.quantization == alone.quantization


def test_one_file_of_several_alone_is_refused(parts: tuple[Path, ...]) -> None:
    with pytest.raises(ModelError, match="one of several files of a model") as caught:
        make_model_spec(read_joined_header(parts[:1]), file_name="m.gguf")
    assert "NAME-00001-of-00003.gguf" in caught.value.hint


def test_files_that_do_not_belong_together(whole: Path, parts: tuple[Path, ...], tmp_path: Path) -> None:
    first, second, third = parts
    assert "split.no is 2, not 1: it is not file 2 of 3" in refused((first, third, second))
    assert "split.count is 3, not 2" in refused((first, second))
    assert "split.count is nothing, not 3" in refused((first, whole, third))
    four = write_parts(whole, tmp_path / "four", count=4)
    assert "split.count" in refused((first, four[1], third))
    patch(four[1], "split.count", 3)
    assert "-of-00003.gguf already" in refused((first, second, _renumbered(four[1], 2, tmp_path)))


def _renumbered(path: Path, number: int, folder: Path) -> Path:
    copy = Path(shutil.copy(path, folder / "copy.gguf"))
    patch(copy, "split.no", number)
    return copy


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 4}, "is a file of another model: split.tensors.count"),
        ({"dim": 128}, "is a file of another model: 'blk."),
    ],
)
def test_a_file_of_another_model(
    parts: tuple[Path, ...], tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf", **{"dim": 64, "ff": 64, **changes})  # type: ignore[arg-type]
    others = write_parts(other, tmp_path / "others")
    assert said in refused((parts[0], others[1], parts[2])) or said in refused((*parts[:2], others[2]))


def test_fewer_tensors_than_declared(parts: tuple[Path, ...]) -> None:
    for path in parts:
        patch(path, "split.tensors.count", 500)
    assert "the model has 500 tensors, its 3 files hold" in refused(parts)


def test_a_name_within_a_folder_is_found(parts: tuple[Path, ...]) -> None:
    names = [path.name for path in reversed(parts)]
    assert find_shards(names, parts[0].name, place="x") == tuple(path.name for path in parts)
    with pytest.raises(ModelError, match="is file 2 of a model in 3 files") as caught:
        find_shards(names, parts[1].name, place="x")
    assert parts[0].name in caught.value.hint


def outcome(paths: Sequence[Path]) -> str:
    """The model's name, or the refusal; anything else that is raised is a bug."""
    try:
        joined = read_joined_header(paths)
        for path in paths:
            read_gguf_places(path)
        return make_model_spec(joined, file_name="m.gguf").name
    except ModelError as error:
        return error.message


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_of_the_headers_ends_in_a_model_or_one_line(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    parts = write_parts(whole, tmp_path_factory.mktemp("hostile") / "parts")
    for path in parts:
        changed = bytearray(path.read_bytes())
        spots = [
            at
            for key in ("split.no", "split.tensors.count", "split.count")
            if (at := changed.find(text(key))) >= 0
        ]
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(
                st.sampled_from(spots).flatmap(lambda spot: st.integers(spot, spot + 40))
                | st.integers(0, 1_000)
            )
            changed[at : at + 4] = data.draw(
                st.binary(min_size=4, max_size=4) | st.sampled_from([b"\xff" * 4, bytes(4)])
            )
        path.write_bytes(bytes(changed))
    assert "\n" not in outcome(parts)


def test_hostile_files_take_bounded_memory(tmp_path: Path) -> None:
    """A hundred files, each full of tensors: refused before they add up."""
    keys = b"".join(
        text(key) + struct.pack("<IH", 2, value) for key, value in (("split.no", 0), ("split.count", 100))
    )
    table = b"".join(tensor(f"{number:09d}", (1,)) for number in range(60_000))
    first = tmp_path / "a.gguf"
    first.write_bytes(header(tensors=60_000, keys=2) + keys + table + bytes(64))
    paths = [first]
    for number in range(1, 100):
        path = tmp_path / f"{number}.gguf"
        raw = keys.replace(
            text("split.no") + struct.pack("<IH", 2, 0), text("split.no") + struct.pack("<IH", 2, number)
        )
        other = table.replace(b"0000", b"%04d" % number)
        if number < 4:
            path.write_bytes(header(tensors=60_000, keys=2) + raw + other + bytes(64))
        paths.append(path)
    program = (
        "import resource, sys; from pathlib import Path; from edgebuild.gguf_joined import read_joined_header; from edgebuild.errors import ModelError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_joined_header([Path(item) for item in sys.argv[1:]])\n"
        "except ModelError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, check=True
    )
    message, grown_kib = done.stdout.strip().splitlines()
    assert "more than 131072 tensors in all files" in message
    assert int(grown_kib) < 300_000

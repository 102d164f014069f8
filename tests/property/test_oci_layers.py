"""Any tree becomes a layer that other programs read back as the same tree, with the same bytes every time."""

import gzip
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebuild.oci.blob import Blob
from edgebuild.oci.check_layer import read_layer
from edgebuild.oci.copying import copy_hashed
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Role
from edgebuild.oci.seals import known_blob_digest, remember_blob_digest
from edgebuild.oci.tar import model_tar, tree_layer
from tests.unit.oci.making import DictSeals, HookProgress

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=60
).filter(lambda name: name not in {".", ".."} and not name.startswith(".wh.") and len(name.encode()) < 250)
TARGETS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=150)
CONTENTS = st.one_of(
    st.binary(max_size=1500),
    TARGETS.map(lambda target: ("link", target)),
    st.none(),
)
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=4).map("/".join), CONTENTS, max_size=12)
Content = bytes | tuple[str, str] | None


def write(folder: Path, contents: dict[str, Content], *, modes: bool) -> dict[str, Content]:
    """Write what does not stand in the way of something else, and return it."""
    folder.mkdir()
    kept: dict[str, Content] = {}
    for name, content in contents.items():
        path = folder / name
        parents = [str(parent) for parent in PurePosixPath(name).parents][:-1]
        if os.path.lexists(path) or any(kept.get(parent) is not None for parent in parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, tuple):
            os.symlink(content[1], path)  # noqa: PTH211 - Path would rewrite the target
        else:
            path.write_bytes(content)
            if modes:
                path.chmod(0o640)
                os.utime(path, (1, 1))
        kept |= dict.fromkeys((parent for parent in parents if parent not in kept), None)
        kept[name] = content
    return kept


def read(folder: Path) -> dict[str, Content]:
    found: dict[str, Content] = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            content: Content = None
            if path.is_symlink():
                content = ("link", os.readlink(path))  # noqa: PTH115 - Path would rewrite the target
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(folder))] = content
    return found


@SLOW
@given(TREES)
def test_gnu_tar_python_and_the_checker_read_the_same_tree(contents: dict[str, Content]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        kept = write(folder / "tree", contents, modes=False)
        layer = tree_layer(folder / "tree", role=Role.SERVER, prefix="", destination=folder / "layer.tar.gz")
        again = write(folder / "again", dict(reversed(contents.items())), modes=True)
        if again == kept:
            other = tree_layer(
                folder / "again", role=Role.SERVER, prefix="", destination=folder / "again.tar.gz"
            )
            assert (other.digest, other.diff_id) == (layer.digest, layer.diff_id)

        facts = read_layer(folder / "layer.tar.gz", compressed=True)
        assert (facts.faults, facts.format_faults) == ((), ())
        assert set(facts.members) == set(kept)
        assert (facts.digest, facts.diff_id) == (layer.digest.hex, layer.diff_id.hex)

        (folder / "out").mkdir()
        subprocess.run(["tar", "-xpzf", folder / "layer.tar.gz", "-C", folder / "out"], check=True)
        assert read(folder / "out") == kept
        with tarfile.open(folder / "layer.tar.gz", encoding="utf-8") as archive:
            assert archive.getnames() == sorted(kept, key=str.encode)
        assert layer.diff_id == Digest.of(gzip.decompress((folder / "layer.tar.gz").read_bytes()))
        shutil.rmtree(folder / "out")


@SLOW
@given(st.binary(max_size=3000), NAMES)
def test_a_model_is_what_stands_between_its_frame(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "model")
        model.write_bytes(data)
        framed = model_tar(model, name)
        raw = framed.blob.read()
        assert raw == framed.before + data + framed.after
        Path(scratch, "layer").write_bytes(raw)
        facts = read_layer(Path(scratch, "layer"), compressed=False)
        assert (facts.faults, facts.format_faults) == ((), ())
        assert facts.digest == facts.diff_id == Digest.of(raw).hex
        assert facts.members[f"models/{name}"].size_bytes == len(data)


@SLOW
@given(st.lists(st.one_of(st.binary(max_size=50), st.integers(0, 3)), max_size=6), st.data())
def test_blobs_of_any_parts(parts: list[bytes | int], data: st.DataObject) -> None:
    """Whatever the parts: chunks from any offset, the copy and its digest agree with the plain bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch, str(number)) for number in range(4)]
        for number, file in enumerate(files):
            file.write_bytes(bytes([number]) * number * 7)
        made = tuple(part if isinstance(part, bytes) else files[part] for part in parts)
        whole = b"".join(part if isinstance(part, bytes) else part.read_bytes() for part in made)
        blob = Blob(made, len(whole))
        offset = data.draw(st.integers(0, len(whole)))
        assert b"".join(blob.chunks(offset_bytes=offset)) == whole[offset:]
        out = os.open(Path(scratch, "out"), os.O_RDWR | os.O_CREAT)
        try:
            with HookProgress().task("copy") as task:
                assert copy_hashed(blob, out, task) == Digest.of(whole)
        finally:
            os.close(out)
        assert Path(scratch, "out").read_bytes() == whole


FRAMES = st.tuples(*(st.lists(st.sampled_from([b"", b"a", b"file\n", b"1\na", b"ab"]), max_size=3),) * 2)


@SLOW
@given(FRAMES, FRAMES)
def test_seals_tell_frames_apart(
    one: tuple[list[bytes], list[bytes]], other: tuple[list[bytes], list[bytes]]
) -> None:
    """A digest is never found for a file in another frame than the one it was remembered for."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "model")
        file.write_bytes(b"model")
        first, second = (
            Blob((*before, file, *after), 5 + len(b"".join(before + after))) for before, after in (one, other)
        )
        seals = DictSeals()
        remember_blob_digest(first, seals, Digest.of(first.read()))
        assert known_blob_digest(first, seals) == Digest.of(first.read())
        if second.read() != first.read():
            assert known_blob_digest(second, seals) is None
        file.write_bytes(b"other")
        assert known_blob_digest(first, seals) is None

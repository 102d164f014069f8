"""Files and folders on this machine."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError
from edgebuild.model.hashing import file_digest
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import WHOLE_FILE
from edgebuild.progress import Task
from tests.unit.artifacts.telling import Told
from tests.unit.model.conftest import Load

CHECKPOINT = ("config.json", "tokenizer.json", "model-00001-of-00001.safetensors")


class _Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self._place,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    return path


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"{}")


def test_file_and_demo(load: Load, tmp_path: Path, models: dict[str, bytes]) -> None:
    (tmp_path / "a-F16.gguf").write_bytes(models["0"])
    found = load("a-F16.gguf")
    assert found.path == tmp_path / "a-F16.gguf"
    assert found.source.to_json() == {
        "kind": "file", "reference": "a-F16.gguf", "revision": None, "file": "a-F16.gguf", "digest": None,
        "licence": None,
    }  # fmt: skip
    assert load("demo").source.kind == "demo"


def test_folder_with_gguf_files(load: Load, folder: Path, models: dict[str, bytes]) -> None:
    for name, seed in (("a-Q4_K_M.gguf", "0"), ("a-Q8_0.gguf", "1")):
        (folder / name).write_bytes(models[seed])
    assert load("model", "Q8_0").path == folder / "a-Q8_0.gguf"
    with pytest.raises(ModelError, match="holds 2 models") as caught:
        load("model", "Q6_K")
    assert str(folder / "a-Q4_K_M.gguf") in caught.value.hint


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (CHECKPOINT[:1] + CHECKPOINT[2:], "holds no tokenizer"),
        (("config.json", "merges.txt", CHECKPOINT[2]), "holds no tokenizer"),
        (CHECKPOINT[1:], "without config.json"),
        (("README.md",), "holds no model"),
        ((), "holds no model"),
        (("config.json", "pytorch_model.bin"), "pickled weights only"),
        (("model.pt",), "pickled weights only"),
    ],
)
def test_folders_that_are_no_use(load: Load, folder: Path, names: tuple[str, ...], said: str) -> None:
    fill(folder, *names)
    with pytest.raises(ModelError, match=said) as caught:
        load("model")
    assert caught.value.hint


def test_pickles_are_never_opened(load: Load, folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(trap)))
    with pytest.raises(ModelError, match="are never opened"):
        load("model")
    assert not trap.exists()


def test_folder_that_cannot_be_read_or_is_not_there(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model") as caught:
        load("gone.gguf")
    assert "hf://ORG/REPO" in caught.value.hint


def test_a_digest_is_remembered_only_of_a_file_that_was_let_alone(
    store: Store, told: Told, tmp_path: Path
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"old bytes")

    class Writer(Told):
        """Writes into the file while it is hashed."""

        @contextmanager
        def task(self, title: str, *, total_bytes: int | None = None) -> Iterator[Task]:
            with super().task(title, total_bytes=total_bytes) as task:
                yield task
            file.write_bytes(b"new bytes!")

    assert file_digest(file, seals=store, progress=Writer()) == Digest.of(b"old bytes")
    assert store.known_digest(file, WHOLE_FILE) is None
    assert file_digest(file, seals=store, progress=told) == Digest.of(b"new bytes!")
    assert store.known_digest(file, WHOLE_FILE) == Digest.of(b"new bytes!")

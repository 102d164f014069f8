"""What quantising keeps in the store: a file whose digest is known, and nothing of a model that changed meanwhile."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError
from edgebuild.gguf import read_gguf_header
from edgebuild.model.quantize import quantize
from edgebuild.model.source import ModelFile, model_digest
from edgebuild.model_spec import make_model_spec
from edgebuild.oci.digest import Digest
from edgebuild.plan import ModelSource
from tests.support.tiny_gguf import write_tiny_gguf
from tests.unit.artifacts.telling import Told, host_at

Quantize = Callable[[Callable[[], Path]], ModelFile]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    return ModelFile(
        path=path,
        spec=make_model_spec(read_gguf_header(path), file_name=path.name),
        source=ModelSource(kind="file", reference=path.name, file=path.name),
    )


@pytest.fixture
def make(model: ModelFile, store: Store, tmp_path: Path) -> Quantize:
    def make(library: Callable[[], Path]) -> ModelFile:
        return quantize(
            model,
            "Q8_0",
            library=library,
            library_source=Digest.of(b"library"),
            store=store,
            host=host_at(tmp_path),
            progress=Told(),
        )

    return make


def test_what_was_made_is_not_hashed_again(make: Quantize, store: Store, llama_host: Path) -> None:
    made = make(lambda: llama_host)
    told = Told()
    assert model_digest(made, seals=store, progress=told) == Digest.of(made.path.read_bytes())
    assert told.titles == []


def test_a_model_that_changes_while_it_is_quantised(
    make: Quantize, model: ModelFile, store: Store, llama_host: Path
) -> None:
    """What was made of the changed file is kept under no key: neither the old file's nor the new one's."""

    def library() -> Path:
        with model.path.open("ab") as file:
            file.write(b"\0")
        return llama_host

    with pytest.raises(ModelError, match=r"tiny\.gguf changed while it was quantised") as caught:
        make(library)
    assert caught.value.hint
    assert not list((store.root / "v1" / "model").glob("*"))
    assert make(lambda: llama_host).spec.quantization == "Q8_0"

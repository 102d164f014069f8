"""A store, a host and a hub for the tests of models."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.host import Host
from edgebuild.model.source import ModelFile, load_model
from tests.support.file_server import FileServer, file_server
from tests.support.hub import LoopbackHub, running_hub
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.tiny_llama import write_tiny_llama
from tests.unit.artifacts.telling import Told, host_at

Load = Callable[..., ModelFile]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store(tmp_path: Path, told: Told) -> Store:
    return Store(tmp_path / "store", progress=told)


@pytest.fixture
def host(tmp_path: Path, hub: LoopbackHub) -> Host:
    return host_at(tmp_path, HF_ENDPOINT=hub.url)


@pytest.fixture
def load(host: Host, store: Store, told: Told) -> Load:
    """`load(reference, "Q4_K_M", …, **environment)`."""

    def load(reference: str, *wanted: str, **environment: str) -> ModelFile:
        changed = replace(host, environment={**host.environment, **environment})
        return load_model(reference, wanted=wanted or ("Q4_K_M",), host=changed, store=store, progress=told)

    return load


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two small models of different weights, by seed."""
    folder = tmp_path_factory.mktemp("models")
    return {str(seed): write_tiny_gguf(folder / f"{seed}.gguf", seed=seed).read_bytes() for seed in range(2)}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint of three layers."""
    return write_tiny_llama(tmp_path / "tiny", layers=3)

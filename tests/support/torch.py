"""The environment of torch and transformers and llama.cpp's converter, as users get them, in the store that all test runs share."""

import shutil
from pathlib import Path
from typing import Protocol

import pytest

from edgebuild.artifacts.sources import Sources
from edgebuild.model.converter_source import find_archive, unpack_converter
from edgebuild.model.environment import TorchEnvironment, torch_environment
from edgebuild.progress import SilentProgress
from tests.support.built import open_store


@pytest.fixture(scope="session")
def torch_packages(built_store: Path) -> TorchEnvironment:
    """Made once, which takes a minute; `command` and `variables` of it start scripts."""
    host, store = open_store(built_store)
    return torch_environment(host=host, store=store, progress=SilentProgress())


@pytest.fixture(scope="session")
def converter_folder(built_store: Path) -> Path:
    """The folder of convert_hf_to_gguf.py and its modules."""
    host, store = open_store(built_store)
    sources = Sources(host=host, store=store, progress=SilentProgress())
    return unpack_converter(find_archive(sources), sources=sources, store=store, progress=SilentProgress())


class LendStore(Protocol):
    """Makes a store of a test's own; see `lend_store`."""

    def __call__(self, folder: Path, *, everything: bool = False) -> Path:
        """Make it in a folder that is not there yet and return that."""
        ...


@pytest.fixture
def lend_store(built_store: Path, torch_packages: TorchEnvironment, converter_folder: Path) -> LendStore:
    """A test's own store to break: it has what converting needs, or all that the shared one has but models."""
    assert torch_packages.packages is not None
    needed = {torch_packages.packages.parent.name, converter_folder.name}

    def lend(folder: Path, *, everything: bool = False) -> Path:
        base = folder / "v1"
        for kind in ("artifact", "download", "layer"):
            (base / kind).mkdir(parents=True)
            for seal in (built_store / "v1" / kind).glob("*.seal"):
                entry = seal.with_suffix("")
                # Another test may be removing what it made.
                if entry.is_dir() and (everything or entry.name in needed):
                    (base / kind / entry.name).symlink_to(entry)
                    shutil.copy2(seal, base / kind)
        (base / "scratch").mkdir()
        (base / "scratch" / "bytecode").symlink_to(torch_packages.bytecode)
        return folder

    return lend

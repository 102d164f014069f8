"""Fixtures of the store's and recipes' tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from tests.support.file_server import FileServer, file_server
from tests.unit.artifacts.telling import Told


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

"""The environment of torch and transformers, as users get it, in the store that all test runs share."""

from pathlib import Path

import pytest

from edgebuild.model.environment import TorchEnvironment, torch_environment
from edgebuild.progress import SilentProgress
from tests.support.built import open_store


@pytest.fixture(scope="session")
def torch_packages(built_store: Path) -> TorchEnvironment:
    """Made once, which takes a minute; `command` and `variables` of it start scripts."""
    host, store = open_store(built_store)
    return torch_environment(host=host, store=store, progress=SilentProgress())

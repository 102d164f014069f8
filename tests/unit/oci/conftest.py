"""Fixtures of the layout's tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(10 << 20))
    return path

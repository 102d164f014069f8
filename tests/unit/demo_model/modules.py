"""The demo model's scripts as modules: their folder is no package."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[3] / "images" / "demo-model"


def load_module(name: str) -> Any:
    """Import `images/demo-model/<name>.py` as `demo_model_<name>`."""
    qualified = f"demo_model_{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module  # dataclasses looks its module up there
        spec.loader.exec_module(module)
    return sys.modules[qualified]

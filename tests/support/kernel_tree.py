"""Folders that look like /proc and /sys of another machine, made of real files."""

from collections.abc import Mapping
from pathlib import Path


def write_kernel_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below a folder.

    Args:
        files: Content by path without a leading slash.
    """
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root

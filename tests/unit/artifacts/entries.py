"""Entries of the store for its tests."""

from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.oci.digest import Digest

KEY = Digest.of(b"key")


OTHER = Digest.of(b"other")


def write(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("alpha")
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o755)
    (folder / "link").symlink_to("sub/a.txt")


def write_one(folder: Path) -> None:
    (folder / "f").write_bytes(b"1234567")


def refuse(folder: Path) -> None:
    pytest.fail("built although it was there")


def leftovers(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "v1" / "temporary").glob("*"))

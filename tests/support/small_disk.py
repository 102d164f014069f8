"""A disk that is full when a test wants it to be: a small tmpfs, which only root can mount."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fixtures import Peers


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallDisk:
    """A mounted tmpfs.

    Attributes:
        path: Where it is mounted.
    """

    path: Path

    @property
    def free_bytes(self) -> int:
        """What can still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, *, leave_bytes: int) -> None:
        """Take all room but so much, rounded to pages."""
        with self._ballast.open("wb") as file:
            if (length := self.free_bytes - leave_bytes) > 0:
                os.posix_fallocate(file.fileno(), 0, length)
        assert self.free_bytes <= max(leave_bytes, 4096) + 8192

    def make_room(self) -> None:
        """Give it back."""
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"


@pytest.fixture
def make_disk(peers: Peers, tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """`make_disk(size_bytes)` mounts one; all are unmounted when the test ends."""
    if os.geteuid() != 0:
        peers.missing("only root can mount a small disk")
    mounted: list[Path] = []

    def make(size_bytes: int) -> SmallDisk:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "edgebuild-test", path],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            peers.missing(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return SmallDisk(path=path)

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)

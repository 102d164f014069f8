"""Pages of a model's file are let go as its copies grow; where the file is not found among the mappings, that is known."""

import mmap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeserve.engine.mapped_pages import MappedPages

SIZE = 8 << 20
# llama.cpp's type of a callback, made of a function.
API = SimpleNamespace(llama_progress_callback=lambda function: function)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights." * (SIZE // 8))
    return path


def resident_bytes(path: Path) -> int:
    """Count the resident bytes of a file's mappings (proc(5), smaps)."""
    found, is_it = 0, False
    for line in Path("/proc/self/smaps").read_text("utf-8", "replace").splitlines():
        if not line.split()[0].endswith(":"):
            is_it = line.endswith(str(path))
        elif is_it and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def load(progress: Callable[[float, object], bool]) -> list[mmap.mmap]:
    """Load as llama.cpp does: tell the progress, and copy meanwhile, to memory that was not there before."""
    assert progress(0.0, None)
    copies = []
    for share in (0.5, 1.0):
        copies.append(mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        copies[-1].write(b"x" * SIZE)
        assert progress(share, None)
    return copies


def test_pages_of_what_was_copied_are_let_go(model: Path) -> None:
    pages = MappedPages(API, (str(model),))
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:SIZE].count(b"weights.") == SIZE // 8
        assert resident_bytes(model) == SIZE
        load(pages.callback)
        assert resident_bytes(model) == 0
    assert not pages.are_missed


def test_a_file_that_is_not_found_among_the_mappings(model: Path) -> None:
    pages = MappedPages(API, (str(model),))
    load(pages.callback)
    assert pages.are_missed


def test_without_copies_nothing_is_missed(model: Path) -> None:
    pages = MappedPages(API, (str(model),))
    assert pages.callback(0.0, None)
    assert pages.callback(1.0, None)
    assert not pages.are_missed

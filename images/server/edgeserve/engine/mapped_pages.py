"""Gives back the pages of a model's file that llama.cpp has copied, so that a model is not in memory twice.

On processors with instructions for it ggml copies weights into an order of its own (ggml-cpu/repack.cpp): all quantised
ones on ARM with dot products, 4-bit ones on x86 with AVX2. With the file mapped, and read ahead as a whole (llama-mmap.cpp,
MAP_POPULATE), its pages stay beside the copies. They are let go while the model loads, as the copies grow; those of
weights that are used where they lie come back from the page cache when they are first used.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

# Every so much of the model, which is what the peak lies above one model's size.
_STEP: Final = 0.02
_COPIED_BYTES: Final = 1 << 20
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class MappedPages:
    """Lets go of a model's pages; `callback` is llama.cpp's `llama_progress_callback` and must outlive the loading."""

    def __init__(self, api: Any, files: Sequence[str]) -> None:
        self._files = {os.path.realpath(file) for file in files}
        self._ranges: list[tuple[int, int]] = []
        # Whether there are copies, but no mapping of the file that they were made from was ever found.
        self.are_missed = False
        self._told = self._own_bytes = 0.0
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self.callback = api.llama_progress_callback(self._on_progress)

    def _on_progress(self, progress: float, _data: object) -> bool:
        with suppress(OSError):  # without /proc there is more memory, and a model all the same
            if not self._own_bytes:
                self._own_bytes = _own_bytes()
            if progress - self._told >= _STEP or progress >= 1.0:
                self._told = progress
                self._let_go(is_over=progress >= 1.0)
        return True

    def _let_go(self, *, is_over: bool) -> None:
        own_bytes = _own_bytes()
        if own_bytes - self._own_bytes < _COPIED_BYTES:
            return
        self._own_bytes = own_bytes
        if is_over or not self._ranges:
            was_found = bool(self._ranges)
            # At its end llama.cpp unmaps what it does not need: something else may lie there now.
            self._ranges = _mapped_ranges(self._files)
            self.are_missed = not (self._ranges or was_found)
        for start, end in self._ranges:
            self._madvise(start, end - start, mmap.MADV_DONTNEED)


def _own_bytes() -> float:
    """Count resident memory that belongs to no file (proc(5), statm)."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        _, resident, shared, *_ = statm.read().split()
    return float((int(resident) - int(shared)) * _PAGE_BYTES)


def _mapped_ranges(files: set[str]) -> list[tuple[int, int]]:
    """Find where files are mapped to be read (proc(5), maps)."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:  # noqa: PTH123
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) > 5 and fields[5] in files and fields[1].startswith("r--"):
                start, _, end = fields[0].partition("-")
                found.append((int(start, 16), int(end, 16)))
    return found

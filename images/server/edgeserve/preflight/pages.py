"""Can the kernel map the libraries? One with pages of 16 KiB (Raspberry Pi 5) or 64 KiB needs segments aligned to that."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from edgeserve import exits
from edgeserve.preflight.results import Finding, Result

_PT_LOAD: Final = 1
_HEADER_BYTES: Final = 64
_ELF64_LITTLE: Final = b"\x7fELF\x02\x01"


def check_pages(folder: Path) -> Result:
    """Compare the alignment of every library in the folder with the page size."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    findings = tuple(
        Finding(
            problem=f"{path}: segments are aligned to {alignment} bytes, pages here have {page_bytes}",
            remedy=f"build the image with libraries linked for pages of {page_bytes} bytes, or start a kernel with smaller pages",
            exit_code=exits.PAGE_SIZE,
        )
        for path in sorted(folder.glob("lib*.so"))
        if (alignment := load_alignment(path)) % page_bytes
    )
    return Result(check="pages", seen={"page_bytes": page_bytes}, findings=findings)


def load_alignment(path: Path) -> int:
    """Return the smallest alignment of the segments that are mapped, 0 for a file that is no 64-bit ELF file.

    The dynamic loader refuses one that is no multiple of the page size (elf(5), p_align).
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES or not header.startswith(_ELF64_LITTLE):
            return 0
        (offset,) = struct.unpack_from("<Q", header, 32)  # e_phoff
        entry_bytes, count = struct.unpack_from("<HH", header, 54)  # e_phentsize, e_phnum
        file.seek(offset)
        table = file.read(entry_bytes * count)
    alignments = []
    for start in range(0, len(table) - 55, entry_bytes or 1):
        (kind,) = struct.unpack_from("<I", table, start)
        if kind == _PT_LOAD:
            alignments.append(struct.unpack_from("<Q", table, start + 48)[0])  # p_align
    return min(alignments, default=0)

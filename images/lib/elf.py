"""Reads what matters of ELF files: processor, needed libraries, needed symbol versions.

Source: System V ABI, chapter 4 (header, sections) and 5 (dynamic section); LSB Core 5.0, 10.7 (symbol versions).
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from arguments import RecipeError

_MACHINES = {62: "x86_64", 183: "aarch64"}
_DYNAMIC, _VERNEED = 6, 0x6FFFFFFE
_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 14, 15, 29


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """One program or library.

    Attributes:
        machine: "x86_64", "aarch64", or the number of another processor.
        needed: Names of the libraries it loads (DT_NEEDED).
        soname: Its own name (DT_SONAME) or "".
        search: Where it looks first (DT_RPATH and DT_RUNPATH).
        versions: Symbol versions it wants of others, e.g. "GLIBC_2.29".
    """

    machine: str
    needed: tuple[str, ...]
    soname: str
    search: tuple[str, ...]
    versions: tuple[str, ...]


def read_elf(path: Path) -> Elf | None:
    """Read a file; None when it is no 64-bit little-endian ELF file.

    Raises:
        RecipeError: It is one, but broken.
    """
    with path.open("rb") as file:
        if file.read(6) != b"\x7fELF\x02\x01":
            return None
        try:
            # Mapped, not read: what is looked at is a few pages of what may be hundreds of megabytes.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(data)
        except (struct.error, ValueError, IndexError) as error:
            raise RecipeError(f"{path.name} is a broken ELF file: {error}") from error


def _parse(data: mmap.mmap) -> Elf:
    machine = struct.unpack_from("<H", data, 18)[0]
    offset, entry_bytes, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + n * entry_bytes) for n in range(count)]
    strings: dict[int, list[str]] = {}
    versions: list[str] = []
    for section in sections:
        kind, start, size, link = section[1], section[4], section[5], section[6]
        if kind == _DYNAMIC:
            table = sections[link][4]
            for tag, value in struct.iter_unpack("<qQ", data[start : start + size]):
                strings.setdefault(tag, []).append(_string(data, table + value, wanted=tag))
        elif kind == _VERNEED:
            versions += _needed_versions(data, start, sections[link][4])
    return Elf(
        machine=_MACHINES.get(machine, str(machine)),
        needed=tuple(strings.get(_DT_NEEDED, ())),
        soname="".join(strings.get(_DT_SONAME, ())),
        search=tuple(strings.get(_DT_RPATH, []) + strings.get(_DT_RUNPATH, [])),
        versions=tuple(sorted(versions)),
    )


def _string(data: mmap.mmap, offset: int, *, wanted: int = _DT_NEEDED) -> str:
    # Other tags of the dynamic section carry numbers, not offsets of strings.
    if wanted not in (_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH):
        return ""
    end = data.find(b"\0", offset)
    if end < 0:
        raise ValueError("a string without end")
    return data[offset:end].decode()


def _needed_versions(data: mmap.mmap, start: int, table: int) -> list[str]:
    names = []
    while True:
        _version, count, _file, first, following = struct.unpack_from("<HHIII", data, start)
        entry = start + first
        for _ in range(count):
            _hash, _flags, _other, name, step = struct.unpack_from("<IHHII", data, entry)
            names.append(_string(data, table + name))
            entry += step
        if not following:
            return names
        start += following

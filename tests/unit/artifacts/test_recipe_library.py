"""What recipes share: packages, wheels and libraries are read as they are, and nothing leaves its folder."""

import importlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from edgebuild.data import data_path

MODULES = ("arguments", "bytecode", "debs", "elf", "trees")


@pytest.fixture
def lib() -> Iterator[dict[str, ModuleType]]:
    """The modules of images/lib, imported as recipes import them."""
    sys.path.insert(0, str(data_path("images") / "lib"))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(data_path("images") / "lib"))
        for name in MODULES:
            del sys.modules[name]


def tar(*members: tuple[str, bytes | str | None], kind: bytes = b"") -> bytes:
    """Pack members: bytes are files, text is a link's target, None is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o700
            elif isinstance(content, str):
                info.type, info.linkname = kind or tarfile.SYMTYPE, content
            else:
                info.size, info.mode = len(content), 0o4755 if content.startswith(b"#!") else 0o600
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def deb(path: Path, data: bytes, *, suffix: str = "xz") -> Path:
    control = tar(("./control", b"Package: p\nVersion: 1\n"))
    parts = (("debian-binary", b"2.0\n"), ("control.tar.xz", control), (f"data.tar.{suffix}", data))
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in parts:
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def test_package_is_unpacked_as_dpkg_does(lib: dict[str, ModuleType], tmp_path: Path, root: Path) -> None:
    members = tar(
        (".", None),
        ("./usr", None),
        ("./usr/lib", None),
        ("./usr/lib/a.so", b"library"),
        ("./usr/bin", None),
        ("./usr/bin/run", b"#!run"),
        ("./usr/bin/link", "run"),
        ("./usr/bin/absolute", "/etc/conf"),
        ("./.hidden", b"h"),
        ("./ends.", b"e"),
    )
    lib["debs"].unpack_deb(deb(tmp_path / "p.deb", members), root)
    lib["trees"].settle_modes(root)
    real = tmp_path / "real"
    subprocess.run(["dpkg-deb", "-x", tmp_path / "p.deb", real], check=True)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert names == sorted(str(path.relative_to(real)) for path in real.rglob("*"))
    assert (root / "usr/lib/a.so").read_bytes() == b"library"
    assert (root / "usr/bin/link").readlink() == Path("run")
    assert (root / "usr/bin/absolute").readlink() == Path("../../etc/conf"), "absolute links become relative"
    modes = {name: (root / name).lstat().st_mode & 0o7777 for name in ("usr", "usr/lib/a.so", "usr/bin/run")}
    assert modes == {"usr": 0o755, "usr/lib/a.so": 0o644, "usr/bin/run": 0o755}


def test_files_below_a_linked_folder_go_where_it_points(
    lib: dict[str, ModuleType], tmp_path: Path, root: Path
) -> None:
    lib["debs"].unpack_deb(deb(tmp_path / "a.deb", tar(("./lib", "usr/lib"), ("./usr/lib", None))), root)
    lib["debs"].unpack_deb(deb(tmp_path / "b.deb", tar(("./lib", None), ("./lib/x/y", b"1"))), root)
    assert (root / "usr/lib/x/y").read_bytes() == b"1"
    assert (root / "lib").is_symlink()


def test_hard_link_becomes_a_file(lib: dict[str, ModuleType], tmp_path: Path, root: Path) -> None:
    members = tar(("./a", b"1"), ("./b", "./a"), kind=tarfile.LNKTYPE)
    lib["debs"].unpack_deb(deb(tmp_path / "p.deb", members), root)
    assert (root / "b").read_bytes() == b"1"
    assert (root / "b").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (tar(("../out", b"1")), "leaves its folder"),
        (tar(("./a/../../out", b"1")), "leaves its folder"),
        (tar(("./a", "../.."), ("./a/out", b"1")), "leaves its folder"),
        (tar(("./a", "b"), ("./b", "a"), ("./a/x", b"1")), "in a circle"),
        (tar(("./a", b"1"), ("./a", b"2")), "another package brought already"),
        (tar(("./pipe", ""), kind=tarfile.FIFOTYPE), "neither file, folder nor link"),
        (tar(("./b", "./absent"), kind=tarfile.LNKTYPE), "not unpacked"),
    ],
)
def test_package_that_would_do_harm_is_refused(
    lib: dict[str, ModuleType], tmp_path: Path, root: Path, members: bytes, told: str
) -> None:
    with pytest.raises(lib["arguments"].RecipeError, match=told):
        lib["debs"].unpack_deb(deb(tmp_path / "p.deb", members), root)
    assert not (tmp_path / "out").exists()


def test_what_is_no_package_is_refused(lib: dict[str, ModuleType], tmp_path: Path, root: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"PK\x03\x04")
    with pytest.raises(lib["arguments"].RecipeError, match="not an ar archive"):
        lib["debs"].unpack_deb(tmp_path / "x.deb", root)
    with pytest.raises(lib["arguments"].RecipeError, match=r"data\.tar\.zst"):
        lib["debs"].unpack_deb(deb(tmp_path / "z.deb", b"", suffix="zst"), root)


def test_control_file_is_read(lib: dict[str, ModuleType], tmp_path: Path) -> None:
    assert lib["debs"].control_text(deb(tmp_path / "p.deb", tar())) == "Package: p\nVersion: 1\n"


def test_wheel_cannot_leave_its_folder(lib: dict[str, ModuleType], tmp_path: Path, root: Path) -> None:
    for name in ("../out", "/out", "a/../../out"):
        with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
            wheel.writestr(name, b"1")
        with pytest.raises(lib["arguments"].RecipeError, match="leaves its folder"):
            lib["trees"].unpack_wheel(tmp_path / "w.whl", root)


def test_library_is_read_as_readelf_reads_it(lib: dict[str, ModuleType]) -> None:
    path = Path(sys.executable).resolve()
    elf = lib["elf"].read_elf(path)
    said = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    assert elf.machine == os.uname().machine
    assert elf.needed
    assert all(name in said for name in elf.needed)
    assert any(version.startswith("GLIBC_2.") for version in elf.versions)
    assert lib["elf"].read_elf(Path(__file__)) is None


def test_broken_library_is_one_clear_error(lib: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(Path(sys.executable).read_bytes()[:5000])
    with pytest.raises(lib["arguments"].RecipeError, match=r"broken\.so is a broken ELF file"):
        lib["elf"].read_elf(tmp_path / "broken.so")

"""The real recipes, from the host's mirrors to trees: the same bits in any folder, checked by other means than theirs.

Downloads come once into the tests' store. No test runs a program of the target except under emulation.
"""

import hashlib
import os
import shutil
import ssl
import stat
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgebuild.artifacts.recipes import build_artifact
from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.data import data_path
from edgebuild.host import Host, make_host
from edgebuild.lock import Lock
from edgebuild.locking import Need, obtain_lock
from edgebuild.oci.platform import LINUX_AMD64, LINUX_ARM64, Platform
from edgebuild.progress import SilentProgress

IMAGES = data_path("images")
HERE = Platform.of_machine(os.uname().machine)
ELF_MACHINES = {"arm64": 183, "amd64": 62}
QUICK = ("rootfs", "python-deps", "grpc", "server")
PLATFORMS = (LINUX_ARM64, LINUX_AMD64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """Everything that recipes are run with."""

    host: Host
    store: Store
    lock: Lock
    sources: Sources

    def artifact(self, name: str, platform: Platform) -> Path:
        return build_artifact(
            name,
            platform=platform,
            lock=self.lock,
            host=self.host,
            store=self.store,
            progress=SilentProgress(),
            sources=self.sources,
        ).tree

    def run_by_hand(self, name: str, platform: Platform, folder: Path, *options: str | Path) -> Path:
        """Run a recipe as any engine would: its own program, files in a folder, nothing of edgebuild."""
        (folder / "inputs").mkdir(parents=True)
        items = self.lock.inputs(name, platform, machine=self.host.machine)
        for item, path in zip(items, self.sources.fetch_all(items), strict=True):
            shutil.copyfile(path, folder / "inputs" / item.file)
        recipes = folder / "images"
        shutil.copytree(IMAGES, recipes, ignore=shutil.ignore_patterns("demo-model", "__pycache__"))
        argv: list[str | Path] = [
            sys.executable,
            "-I",
            recipes / name / "recipe.py",
            "--platform",
            str(platform),
        ]
        argv += ["--inputs", folder / "inputs", "--output", folder / "tree", "--jobs", "2", *options]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env={"PATH": os.environ["PATH"]})
        return folder / "tree"


@pytest.fixture(scope="session")
def shop(built_store: Path, built_lock: Path) -> Shop:
    host = make_host(
        environment=os.environ,
        working_directory=Path.cwd(),
        cpu_count=len(os.sched_getaffinity(0)),
        now_s=int(time.time()),
        cache=built_store,
    )
    store = Store(host.cache_directory)
    sources = Sources(host=host, store=store, progress=SilentProgress())
    lock = obtain_lock(
        built_lock,
        needed=tuple(Need(name, platform) for name in QUICK for platform in PLATFORMS),
        locked=False,
        update=False,
        host=host,
        store=store,
        progress=SilentProgress(),
        sources=sources,
    )
    return Shop(host=host, store=store, lock=lock, sources=sources)


def listing(tree: Path) -> dict[str, tuple[int, str]]:
    """Describe a tree: mode and content of every path."""
    found = {}
    for path in sorted(tree.rglob("*")):
        mode = path.lstat().st_mode
        content = ""
        if stat.S_ISLNK(mode):
            content = str(path.readlink())
        elif stat.S_ISREG(mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(tree))] = mode, content
    return found


@pytest.mark.parametrize("platform", PLATFORMS, ids=str)
@pytest.mark.parametrize("name", QUICK)
def test_recipe_gives_the_same_bits_in_any_folder(
    shop: Shop, tmp_path: Path, name: str, platform: Platform
) -> None:
    tools = shutil.copytree(
        shop.artifact("toolchain", HERE), tmp_path / "a much longer name" / "tools", symlinks=True
    )
    before = os.umask(0o077)
    try:
        first = listing(shop.run_by_hand(name, platform, tmp_path / "one", "--toolchain", tools))
    finally:
        os.umask(before)
    assert first
    assert first == listing(shop.artifact(name, platform))


@pytest.fixture(params=PLATFORMS, ids=str)
def rootfs(request: pytest.FixtureRequest, shop: Shop) -> tuple[Path, Platform]:
    return shop.artifact("rootfs", request.param), request.param


def test_every_program_of_a_tree_is_for_its_platform(shop: Shop, rootfs: tuple[Path, Platform]) -> None:
    root, platform = rootfs
    trees = (root, shop.artifact("python-deps", platform), shop.artifact("grpc", platform))
    headers = [path.read_bytes()[:20] for tree in trees for path in tree.rglob("*") if path.is_file()]
    machines = {struct.unpack_from("<H", header, 18)[0] for header in headers if header[:4] == b"\x7fELF"}
    assert machines == {ELF_MACHINES[platform.architecture]}


def test_root_has_no_shell_no_setuid_and_no_link_that_leads_nowhere(rootfs: tuple[Path, Platform]) -> None:
    root, _ = rootfs
    assert sorted(path.name for path in (root / "usr/bin").iterdir()) == ["python3", "python3.13"]
    assert list((root / "usr/sbin").iterdir()) == []
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = path.readlink()
            assert not target.is_absolute(), path
            assert (path.parent / target).exists() or str(target).startswith("../run"), path
        assert not mode & (stat.S_ISUID | stat.S_ISGID), path


def test_root_has_users_certificates_licences_and_package_state(
    shop: Shop, rootfs: tuple[Path, Platform]
) -> None:
    root, platform = rootfs
    users = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    assert ["edge", "x", "10001", "10001"] in [user[:4] for user in users]
    assert ["root", "*", "0", "0"] in [user[:4] for user in users]
    assert "edge:x:10001:" in (root / "etc/group").read_text()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=root / "usr/lib/ssl/cert.pem")
    assert len(context.get_ca_certs()) > 100
    debs = shop.lock.inputs("rootfs", platform, machine=shop.host.machine)
    state = {path.name: path.read_text() for path in (root / "var/lib/dpkg/status.d").iterdir()}
    assert set(state) == {item.name for item in debs}
    for item in debs:
        assert f"\nVersion: {item.version}\n" in f"\n{state[item.name]}"
        copyright_file = root / "usr/share/doc" / item.name / "copyright"
        assert copyright_file.exists() or (root / "usr/share/doc" / item.name).is_symlink(), item.name


@pytest.mark.parametrize("name", QUICK)
def test_bytecode_is_there_and_depends_on_no_time(shop: Shop, name: str) -> None:
    tree = shop.artifact(name, LINUX_ARM64)
    # /etc/python3.13/sitecustomize.py is imported through its link in the library's folder.
    sources = [path for path in tree.rglob("*.py") if "etc" not in path.relative_to(tree).parts]
    assert sources
    for source in sources:
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-313.pyc"
        header = compiled.read_bytes()[:16]
        assert struct.unpack_from("<H", header)[0] == 3571, "magic number of CPython 3.13"
        # PEP 552: bit 0 says that a hash follows, bit 1 that it is checked at import.
        assert struct.unpack_from("<I", header, 4)[0] == 0b01, compiled


def emulate(shop: Shop, tree: Path, code: str, *, model: str, **environment: str) -> str:
    """Run Python code with the arm64 tree's own Python on a processor model."""
    qemu = shop.artifact("qemu", HERE) / "qemu-aarch64"
    done = subprocess.run(
        [qemu, "-cpu", model, "-L", tree, tree / "usr/bin/python3.13", "-P", "-c", code],
        env={"PYTHONHOME": str(tree / "usr"), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_python_of_the_arm64_root_runs_and_finds_what_the_server_imports(shop: Shop) -> None:
    root, deps = shop.artifact("rootfs", LINUX_ARM64), shop.artifact("python-deps", LINUX_ARM64)
    code = (
        "import asyncio, bz2, ctypes, decimal, hashlib, json, lzma, ssl, zlib\n"
        "import h11, jinja2, markupsafe._speedups, typing_extensions, uvicorn\n"
        "import os, sys; print(os.uname().machine, sys.version_info[:2], ssl.create_default_context() is not None)"
    )
    assert emulate(shop, root, code, model="cortex-a72", PYTHONPATH=str(deps)) == "aarch64 (3, 13) True"


ENGINE = """
import ctypes, pathlib, re, sys
from llama_cpp import llama_cpp
folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
load = ctypes.CDLL(str(folder / "libggml.so")).ggml_backend_load_all_from_path
load.argtypes = [ctypes.c_char_p]
load(str(folder).encode())
print(re.findall(r"libggml-cpu-([a-z0-9_.]+)\\.so", pathlib.Path("/proc/self/maps").read_text())[0])
"""


@pytest.mark.slow
def test_engine_chooses_the_variant_of_the_processor(shop: Shop) -> None:
    root, deps = shop.artifact("rootfs", LINUX_ARM64), shop.artifact("python-deps", LINUX_ARM64)
    path = f"{shop.artifact('llama-cpp', LINUX_ARM64)}:{deps}"
    for model, variant in (("cortex-a72", "armv8.0_1"), ("cortex-a76", "armv8.2_2"), ("max", "armv8.6_2")):
        assert emulate(shop, root, ENGINE, model=model, PYTHONPATH=path) == variant


@pytest.mark.parametrize("platform", PLATFORMS, ids=str)
def test_engine_names_no_place_of_the_machine_that_compiled_it(shop: Shop, platform: Platform) -> None:
    """That it has the same bits wherever it is compiled, test_reproducible.py says."""
    libraries = list(shop.artifact("llama-cpp", platform).rglob("*.so"))
    assert libraries
    for path in libraries:
        raw = path.read_bytes()
        for place in (shop.store.root, IMAGES, Path.home() / ".cache"):
            assert os.fsencode(place) not in raw, f"{path.name} holds {place}"

"""The environment of torch: made by the real uv, from folders of small wheels and a loopback index."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgebuild.artifacts.store import Store
from edgebuild.errors import StoreError, ToolError
from edgebuild.host import Host
from edgebuild.model.environment import TorchEnvironment, torch_environment, torch_identity
from edgebuild.process import run
from tests.support.file_server import FileServer, Page
from tests.support.small_disk import SmallDisk
from tests.support.wheels import write_pins, write_wheel
from tests.unit.artifacts.telling import Told, host_at

# Nobody listens there: what is not served on loopback cannot be had, whatever network the machine has.
NOWHERE = "http://127.0.0.1:9"


@dataclass
class Setup:
    """An index on loopback, a folder of wheels, and pins for both."""

    server: FileServer
    folder: Path
    host: Host
    store: Store
    told: Told
    pins: Path

    def serve(self, *wheels: Path) -> None:
        """Put wheels into the index; a project that it lacks is a 404."""
        for project in {wheel.name.split("-")[0] for wheel in wheels}:
            listed = [wheel for wheel in wheels if wheel.name.split("-")[0] == project]
            links = "".join(f'<a href="/files/{wheel.name}">{wheel.name}</a>' for wheel in listed)
            self.server.pages[f"/simple/{project}/"] = Page(links.encode(), content_type="text/html")
        for wheel in wheels:
            self.server.pages[f"/files/{wheel.name}"] = Page(wheel.read_bytes())

    def make(self, *, may_fetch: bool = True, **environment: str) -> TorchEnvironment:
        host = replace(self.host, environment={**self.host.environment, **environment})
        return torch_environment(
            host=host, store=self.store, progress=self.told, may_fetch=may_fetch, pins=self.pins
        )

    def entries(self) -> list[str]:
        return [path.name for path in (self.store.root / "v1" / "artifact").glob("*")]


@pytest.fixture
def setup(tmp_path: Path, server: FileServer, store: Store, told: Told) -> Setup:
    host = host_at(
        tmp_path,
        PIP_CONFIG_FILE="/dev/null",
        PIP_INDEX_URL=f"{server.url}/simple",
        HTTPS_PROXY=NOWHERE,
        UV_HTTP_RETRIES="0",
    )
    hello = write_wheel(tmp_path / "wheels", "hello", "1.0", hello='WORDS = "from the store"\n')
    pins = write_pins(tmp_path / "pins", hello, torch="2.0.0")
    found = Setup(server=server, folder=tmp_path / "wheels", host=host, store=store, told=told, pins=pins)
    found.serve(hello, write_wheel(tmp_path / "wheels", "torch", "2.0.0", torch="KIND = 'plain'\n"))
    return found


def say(environment: TorchEnvironment, host: Host, folder: Path, code: str) -> str:
    script = folder / "script.py"
    script.write_text(code)
    done = run(environment.command(script, "word"), environment=environment.variables(host))
    return done.stdout.strip()


def test_made_once_and_seen_alone(setup: Setup, tmp_path: Path) -> None:
    environment = setup.make()
    code = "import sys, hello, torch; print(hello.WORDS, torch.KIND, sys.argv[1])"
    assert say(environment, setup.host, tmp_path, code) == "from the store plain word"
    # edgebuild's own packages are not there, and nothing was written into the store.
    absent = "import importlib.util as u; print(u.find_spec('edgebuild'), u.find_spec('click'))"
    assert say(environment, setup.host, tmp_path, absent) == "None None"
    assert setup.store.verify() == ()
    asked = len(setup.server.asked)
    assert setup.make(may_fetch=False) == environment
    assert len(setup.server.asked) == asked
    assert environment.identity == torch_identity(setup.host, pins=setup.pins)
    assert any("once" in note for note in setup.told.notes)
    assert not list((setup.store.root / "v1" / "scratch").glob("uv*"))


def test_a_wheel_of_the_cpu_in_pips_folder_goes_before_the_plain_one(setup: Setup, tmp_path: Path) -> None:
    setup.serve(
        write_wheel(setup.folder, "torch", "2.0.0", requires=("nvidia-cublas",)),
        write_wheel(setup.folder, "nvidia_cublas", "13.0"),
    )
    write_wheel(tmp_path / "links", "torch", "2.0.0+cpu", torch="KIND = 'cpu'\n")
    environment = setup.make(PIP_FIND_LINKS=str(tmp_path / "links"))
    assert say(environment, setup.host, tmp_path, "import torch; print(torch.KIND)") == "cpu"


def test_cuda_is_never_fetched(setup: Setup) -> None:
    setup.serve(
        write_wheel(setup.folder, "torch", "2.0.0", requires=("nvidia-cublas",)),
        write_wheel(setup.folder, "nvidia_cublas", "13.0"),
    )
    setup.server.pages["/simple/nvidia-cublas/"] = setup.server.pages.pop("/simple/nvidia_cublas/")
    with pytest.raises(ToolError, match=r"^no CPU build of torch can be had for Python 3\.\d+: ") as caught:
        setup.make()
    assert "PIP_FIND_LINKS" in caught.value.hint
    assert "\n" not in caught.value.message
    assert not setup.entries()


def test_nothing_is_fetched_where_that_is_not_wanted(setup: Setup) -> None:
    with pytest.raises(ToolError, match="--locked fetches nothing") as caught:
        setup.make(may_fetch=False)
    assert "edgebuild model setup" in caught.value.hint
    assert not setup.server.asked
    assert not setup.entries()


def test_another_file_under_a_pinned_version_is_refused(setup: Setup) -> None:
    setup.server.pages["/files/hello-1.0-py3-none-any.whl"] = Page(
        write_wheel(setup.folder / "other", "hello", "1.0", hello="EVIL = 1\n").read_bytes()
    )
    with pytest.raises(ToolError, match="cannot be set up: "):
        setup.make()
    assert not setup.entries()


def test_an_index_that_does_not_answer_and_the_next_try(setup: Setup) -> None:
    with pytest.raises(ToolError, match="torch and transformers cannot be set up: ") as caught:
        setup.make(PIP_INDEX_URL=f"{NOWHERE}/simple")
    assert "\n" not in caught.value.message
    assert "PIP_INDEX_URL" in caught.value.hint
    assert not setup.entries()
    assert setup.make().packages is not None


def test_a_full_disk_leaves_nothing(setup: Setup, make_disk: Callable[[int], SmallDisk], told: Told) -> None:
    disk = make_disk(6 << 20)
    setup.serve(
        write_wheel(setup.folder, "torch", "2.0.0", torch="#" * (4 << 20)),
        setup.folder / "hello-1.0-py3-none-any.whl",
    )
    disk.fill(leave_bytes=1 << 20)
    setup.store = Store(disk.path / "store", progress=told)
    with pytest.raises(StoreError, match="no space is left for the store"):
        setup.make()
    assert not setup.entries()
    disk.make_room()
    assert setup.make().packages is not None
    assert setup.store.verify() == ()


@pytest.mark.parametrize(("torch", "is_own"), [("2.13.0+cpu", True), ("2.0.0", False), ("", False)])
def test_a_python_that_has_the_extra_is_taken_as_it_is(tmp_path: Path, torch: str, is_own: bool) -> None:
    """In a process of its own, whose packages are described and no more: their versions decide."""
    wanted = [
        Requirement(line)
        for line in metadata.requires("edgebuild") or ()
        if "convert" in line.partition(";")[2]
    ]
    assert "transformers" in {requirement.name for requirement in wanted}
    found = {spec.name: part.version for spec in wanted for part in spec.specifier if part.operator == ">="}
    found["torch"] = torch
    for name, version in found.items():
        if version:
            info = tmp_path / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    code = (
        "from pathlib import Path\nfrom edgebuild.artifacts.store import Store\n"
        "from edgebuild.model.environment import torch_environment, torch_identity\n"
        "from edgebuild.progress import SilentProgress\nfrom tests.unit.artifacts.telling import host_at\n"
        f"host = host_at(Path({str(tmp_path)!r}))\nprint(torch_identity(host))\n"
        "store = Store(host.cache_directory)\n"
        "print(torch_environment(host=host, store=store, progress=SilentProgress(), may_fetch=False).packages)"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    done = run([sys.executable, "-c", code], environment=environment, check=False)
    if is_own:
        identity, packages = done.stdout.splitlines()
        assert "torch 2.13.0+cpu, " in identity
        assert f"transformers {found['transformers']}" in identity
        assert packages == "None"
    else:
        assert done.stdout.startswith("pinned sha256:")
        assert "--locked fetches nothing" in done.stderr

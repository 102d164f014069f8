"""Real builds: one store for all test runs, and one signed layout a session, made by the command as a user makes it.

On an empty store the first build downloads and compiles for many minutes; every later run takes what is there.
"""

import json
import os
import sys
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.engine.native import NativeEngine
from edgebuild.host import Host, make_host
from edgebuild.lock import load_lock
from edgebuild.locking import Need, obtain_lock
from edgebuild.oci.layer import Role
from edgebuild.oci.platform import Platform
from edgebuild.plan import ARTIFACTS, software_roles
from edgebuild.profile import load_profile
from edgebuild.progress import SilentProgress
from tests.support.peers.fetch import cache_root
from tests.support.peers.tool import Completed, run

ROOT = Path(__file__).parents[2]
PROFILES = ("pi4", "x86")
PASSWORD = "words of an integration test"
REFERENCE = "127.0.0.1:5000/acme/alert:1.0"
QUESTION = "alt 42 m; speed 7 m/s; obstacle 30 m left; battery 18 %; temp 41 C; gps ok"

_BUILD_TIMEOUT_S = 3 * 3600.0
# What a developer may have set for themselves, and what would change what a build does.
_PERSONAL = ("EDGEBUILD_", "COSIGN_", "DOCKER_", "SOURCE_DATE_EPOCH", "PYTHON", "TERM", "COLUMNS")
# An interface that is down has no loopback, which the smoke test asks its question over: ioctl(SIOCSIFFLAGS, IFF_UP).
_LOOPBACK_UP = (
    "import fcntl, os, socket, struct, sys; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 1)); os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edgebuild:
    """The command line, started as a user starts it.

    Attributes:
        folder: Working directory; `home`, `docker` and whatever a command writes by default lie in it.
        variables: The whole environment.
        prefix: What stands before the command itself.
        program: The command.
    """

    folder: Path
    variables: Mapping[str, str]
    prefix: tuple[str, ...] = ()
    program: tuple[str, ...] = (os.fspath(Path(sys.executable).with_name("edgebuild")),)

    def run(
        self,
        *args: str | Path,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 300,
    ) -> Completed:
        """Run it to its end, with nothing on standard input and no terminal anywhere.

        Raises:
            AssertionError: `check` is set and the exit code is not 0, or the time is up.
        """
        return run(
            [*self.prefix, *self.program, *args],
            env={**self.variables, **(env or {})},
            check=check,
            timeout_s=timeout_s,
            cwd=self.folder,
        )

    def json(self, *args: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 300) -> Any:
        """Run it with `--json` and return the document, which is all of standard output."""
        return json.loads(self.run(*args, "--json", env=env, timeout_s=timeout_s).stdout)

    def offline(self) -> "Edgebuild":
        """The same without any network but an own loopback."""
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        return replace(self, prefix=("unshare", *user, "--net", "--", sys.executable, "-c", _LOOPBACK_UP))


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What one `edgebuild image` of profiles pi4 and x86 with the demo model left.

    Attributes:
        layout: Folder of the layout; leave it as it is.
        document: What it wrote with `--json`.
        told: What it wrote to standard error.
        arguments: The arguments that shape the result; with another `--output` they make the same again.
        key: The private key that signed.
        lock: The lock file that was used.
    """

    layout: Path
    document: dict[str, Any]
    told: str
    arguments: tuple[str | Path, ...]
    key: Path
    lock: Path

    @property
    def public(self) -> Path:
        """The public key."""
        return self.key.with_suffix(".pub")

    @property
    def password_file(self) -> Path:
        """File with the key's password."""
        return self.key.with_name("password")

    @property
    def signing(self) -> tuple[str | Path, ...]:
        """Options that sign with the key."""
        return ("--sign", self.key, "--password-file", self.password_file)

    @property
    def digest(self) -> str:
        """Digest of the index."""
        digest: str = self.document["index"]["digest"]
        return digest

    def image(self, profile: str) -> dict[str, Any]:
        """Return what the document says of a profile's image."""
        found: dict[str, Any] = next(
            image for image in self.document["images"] if image["profile"] == profile
        )
        return found

    @property
    def model(self) -> str | Path:
        """What `--model` was given."""
        return self.arguments[self.arguments.index("--model") + 1]

    def blob(self, digest: str) -> Path:
        """Return where the layout keeps a blob."""
        return self.layout / "blobs" / digest.replace(":", "/")

    def read(self, digest: str) -> Any:
        """Return a JSON document of the layout."""
        return json.loads(self.blob(digest).read_bytes())


@pytest.fixture(scope="session")
def built_store() -> Path:
    """The store that all test runs share; content-addressed, so that nothing stale is ever taken from it."""
    folder = cache_root() / "store"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def built_lock() -> Path:
    """The lock file beside it: resolved once, used as long as it fits the recipes."""
    return cache_root() / "edgebuild.lock"


@pytest.fixture
def edgebuild(tmp_path: Path, built_store: Path) -> Edgebuild:
    """The command in an empty folder, with the tests' store."""
    return make_edgebuild(tmp_path, built_store)


@pytest.fixture(scope="session")
def built_layout(built_store: Path, built_lock: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A signed and tested layout of pi4 and x86 with the demo model, tagged `REFERENCE`, built once a session."""
    folder = tmp_path_factory.mktemp("built")
    command = make_edgebuild(folder, built_store)
    (folder / "keys").mkdir()
    (folder / "keys" / "password").write_text(PASSWORD + "\n", "utf-8")
    command.run("keys", "generate", "--output", "keys", "--password-file", "keys/password")
    key = folder / "keys" / "cosign.key"
    arguments: tuple[str | Path, ...] = (
        *(option for profile in PROFILES for option in ("--profile", profile)),
        "--model", os.environ.get("EDGEBUILD_TEST_MODEL", "demo"),
        "--lock", built_lock,
        "--tag", REFERENCE,
        "--sign", key,
        "--password-file", key.with_name("password"),
    )  # fmt: skip
    done = command.run("image", *arguments, "--output", "layout", "--json", timeout_s=_BUILD_TIMEOUT_S)
    return Built(
        layout=folder / "layout",
        document=json.loads(done.stdout),
        told=done.stderr,
        arguments=arguments,
        key=key,
        lock=built_lock,
    )


def make_edgebuild(folder: Path, store: Path) -> Edgebuild:
    """Make the command ready to run in a folder, with a store, and with nothing personal but the package mirrors."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PERSONAL)}
    (folder / "docker").mkdir(exist_ok=True)
    own = {
        "EDGEBUILD_CACHE": os.fspath(store),
        "DOCKER_CONFIG": os.fspath(folder / "docker"),
        "LANG": "C.UTF-8",
    }
    return Edgebuild(folder=folder, variables=kept | own)


def config_files(layout: Path, image: Mapping[str, Any]) -> dict[str, bytes]:
    """Read the files of an image's last layer, which says what it is, by their names without a leading slash.

    Args:
        layout: Folder of the layout.
        image: What `edgebuild image --json` says of it.
    """
    blob = layout / "blobs" / image["layers"][-1]["digest"].replace(":", "/")
    with tarfile.open(blob) as archive:
        opened = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: file.read() for name, file in opened.items() if file is not None}


def use_trees(store: Path, lock: Path) -> None:
    """Have the store note that the trees of all software of `PROFILES` were used, though a build is content with their layers."""
    host, opened, sources = _open(store)
    engine = NativeEngine(
        lock=load_lock(lock), sources=sources, store=opened, host=host, progress=SilentProgress()
    )
    for name in PROFILES:
        profile = load_profile(name, working_directory=lock.parent)
        for role in software_roles(profile):
            engine.artifact(ARTIFACTS[role], profile.oci_platform)


def host_artifact(name: str, store: Path, lock: Path) -> Path:
    """Return the tree of an artifact for this machine: the engine's is the very one that goes into images."""
    host, opened, sources = _open(store)
    here = Platform.of_machine(host.machine)
    settled = obtain_lock(
        lock,
        needed=(Need(name, here),),
        locked=False,
        update=False,
        host=host,
        store=opened,
        progress=SilentProgress(),
        sources=sources,
    )
    engine = NativeEngine(lock=settled, sources=sources, store=opened, host=host, progress=SilentProgress())
    return engine.artifact(name, here).tree


def assert_refused(done: Completed, code: int, *parts: str) -> None:
    """See one line `error: …` that holds the parts and a hint at the end, and no traceback."""
    assert done.returncode == code, done.describe()
    assert done.stdout == "", done.describe()
    assert "Traceback" not in done.stderr, done.describe()
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.describe()
    assert all(part in errors[0] for part in parts), done.describe()
    assert lines[-1].startswith("hint: "), done.describe()


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model, or the one that stands in for it."""
    from edgebuild.model.source import demo_model_path

    given = os.environ.get("EDGEBUILD_TEST_MODEL")
    return Path(given) if given else demo_model_path()


def engine_source(store: Path, lock: Path) -> Path:
    """Return the source archive that the engine is built from, llama-cpp-python's, by a lock that has it."""
    host, _, sources = _open(store)
    inputs = load_lock(lock).inputs(
        ARTIFACTS[Role.ENGINE], Platform.of_machine(host.machine), machine=host.machine
    )
    return sources.fetch_all(tuple(item for item in inputs if item.name == "llama-cpp-python"))[0]


def open_store(folder: Path) -> tuple[Host, Store]:
    """Open a store as this machine's edgebuild would."""
    host = make_host(
        environment=os.environ,
        working_directory=Path.cwd(),
        cpu_count=len(os.sched_getaffinity(0)),
        now_s=int(time.time()),
        cache=folder,
    )
    return host, Store(host.cache_directory, progress=SilentProgress())


def _open(store: Path) -> tuple[Host, Store, Sources]:
    host, opened = open_store(store)
    return host, opened, Sources(host=host, store=opened, progress=SilentProgress())

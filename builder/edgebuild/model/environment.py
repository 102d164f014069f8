"""The Python that converting and training need: torch, transformers and what belongs to them.

edgebuild itself does without: they are large. In this order:

1. The Python that edgebuild runs on, where it was installed with the extra `convert`.
2. A folder of packages in the store, pinned in images/convert. The same Python runs on it, without its own packages.
3. That folder is made by uv, from the indexes and folders of wheels that pip and uv are configured with.

On x86-64 the package index has torch with CUDA, gigabytes of it. Its CPU build is taken from a configured index or
folder, else from the index that uv knows for it; the large one is never fetched.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from edgebuild.artifacts.files import remove_tree
from edgebuild.artifacts.pip_settings import read_pip_settings
from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.data import data_path
from edgebuild.errors import StoreError, ToolError
from edgebuild.host import Host
from edgebuild.oci.digest import Digest
from edgebuild.process import run
from edgebuild.progress import Progress

EXTRA = "convert"
_SETUP_HINT = "run `edgebuild model setup` once, with network"
_PINS = ("requirements.txt", "requirements-torch.txt")
# Measured; what uv fetches and what is left of it.
_SIZES = "about 250 MB to fetch, 750 MB in the store"
_CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")
# Headers for building extensions are half of torch's files; of its programs it starts one itself.
_NOT_NEEDED = ("bin", "torch/include", "torch/share", "torch/test")
_NEEDED_PROGRAM = "torch_shm_manager"


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchEnvironment:
    """A Python that imports torch and transformers.

    Attributes:
        identity: What a result made with it depends on: pins and Python, or the versions installed.
        packages: Folder of its packages in the store, which never changes; None where edgebuild's own Python has them.
        bytecode: Folder that keeps the bytecode of what is imported.
    """

    identity: str
    packages: Path | None
    bytecode: Path

    def command(self, script: Path, *arguments: str | Path) -> list[str | Path]:
        """Make the command line that runs a script, for `edgebuild.process.run`."""
        # Without -S edgebuild's own packages would mix with those of the folder.
        alone = [] if self.packages is None else ["-S"]
        return [sys.executable, "-P", *alone, script, *arguments]

    def variables(self, host: Host, *modules: Path) -> dict[str, str]:
        """Make the whole environment of such a script: offline, and nothing of the user's but PATH.

        Args:
            host: This machine.
            modules: Folders that it imports modules from, besides the packages.
        """
        folders = [*modules, *([self.packages] if self.packages is not None else [])]
        return {
            "PATH": host.environment.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": ":".join(str(folder) for folder in folders),
            "PYTHONPYCACHEPREFIX": str(self.bytecode),
            "HOME": str(self.bytecode),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": str(host.cpu_count),
            # The device is for training what is baked, on any machine alike.
            "CUDA_VISIBLE_DEVICES": "",
        }


def torch_identity(host: Host, *, pins: Path | None = None) -> str:
    """Name the environment that `torch_environment` gives, without making it.

    Raises:
        ToolError: This installation lacks its pins.
    """
    return _own_versions() or f"pinned {_key(host, pins or _own_pins())}"


def torch_environment(
    *, host: Host, store: Store, progress: Progress, may_fetch: bool = True, pins: Path | None = None
) -> TorchEnvironment:
    """Return the environment, made now if it is not there.

    Args:
        host: This machine, its index of packages and its proxies.
        store: Keeps the packages.
        progress: Told what is fetched and how large it is.
        may_fetch: False when the user wants nothing fetched (`--locked`).
        pins: Folder of the pinned requirements; None takes edgebuild's own.

    Raises:
        ToolError: It is not there and may not be fetched, or cannot be.
        StoreError: The disk is full.
    """
    bytecode = store.scratch("bytecode")
    if own := _own_versions():
        return TorchEnvironment(identity=own, packages=None, bytecode=bytecode)
    pins = pins or _own_pins()
    key = _key(host, pins)
    if not may_fetch and store.find("artifact", key) is None:
        raise ToolError(
            "converting needs torch and transformers, which are not set up, and --locked fetches nothing",
            hint=_SETUP_HINT,
        )
    entry = store.make("artifact", key, lambda folder: _install(folder, pins, host, store, progress))
    # Bytecode is kept by the modules' paths: the real one is the same by whatever name the store is called.
    packages = entry.resolve() / "packages"
    return TorchEnvironment(identity=f"pinned {key}", packages=packages, bytecode=bytecode)


def _own_pins() -> Path:
    return data_path("images") / EXTRA


def _key(host: Host, pins: Path) -> Digest:
    """Name the folder: its pins, this Python and this processor."""
    try:
        files = {name: str(Digest.of((pins / name).read_bytes())) for name in _PINS}
    except OSError as error:
        raise ToolError(
            f"{error.filename}: cannot be read: {error.strerror}",
            hint="this is a broken installation of edgebuild",
        ) from error
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Digest.of(canonical_json({"format": 1, "pins": files, "python": python, "machine": host.machine}))


def _own_versions() -> str:
    """Name the versions of the extra's packages when this Python has them all, else ""."""
    found = []
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("edgebuild") or ():
            requirement = Requirement(line)
            if requirement.marker is None or not requirement.marker.evaluate({"extra": EXTRA}):
                continue
            if requirement.marker.evaluate({"extra": ""}):
                continue
            version = metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                return ""
            found.append(f"{requirement.name} {version}")
        return ", ".join(sorted(found))
    return ""


def _install(folder: Path, pins: Path, host: Host, store: Store, progress: Progress) -> None:
    """Fill an empty folder with the packages."""
    files = [str(pins / name) for name in _PINS]
    uv = _Uv(host=host, store=store)
    progress.note(f"converting needs torch and transformers: {_SIZES}, once (`edgebuild model setup`)")
    with progress.task("set up torch and transformers") as task:
        task.status("resolving")
        backend = _choose_backend(uv, files)
        packages = folder / "packages"
        uv.run(
            "install",
            "--target",
            str(packages),
            *(word for file in files for word in ("--requirements", file)),
            *backend,
            "--link-mode",
            "hardlink",
            on_line=task.status,
        )
        tests = (packages / "torch" / "bin").glob("*")
        for path in (
            *(packages / name for name in _NOT_NEEDED),
            *(path for path in tests if path.name != _NEEDED_PROGRAM),
        ):
            remove_tree(path)
        # Wheels stay when the network fails, for the next try, and go when they are unpacked.
        remove_tree(uv.cache)


def _choose_backend(uv: "_Uv", files: list[str]) -> tuple[str, ...]:
    """Find the options that bring torch's CPU build.

    Raises:
        ToolError: There is none.
    """
    if not _brings_cuda(uv.run("compile", *files)):
        return ()
    backend = ("--torch-backend", "cpu")
    try:
        resolved = uv.run("compile", *files, *backend)
    except ToolError as error:
        raise ToolError(
            f"no CPU build of torch can be had for Python {sys.version_info.major}.{sys.version_info.minor}: {error.message}",
            hint="name a folder or page with its +cpu wheel in PIP_FIND_LINKS, or take the large build: pip install 'edgebuild[convert]'",
        ) from error
    if _brings_cuda(resolved):
        raise ToolError(
            "the index of torch's CPU builds answers with one that has CUDA",
            hint="name a folder or page with a +cpu wheel in PIP_FIND_LINKS",
        )
    return backend


def _brings_cuda(resolved: str) -> bool:
    return any(line.startswith(_CUDA_PREFIXES) for line in resolved.splitlines())


class _Uv:
    """uv, told what pip is configured with."""

    def __init__(self, *, host: Host, store: Store) -> None:
        # Of this Python: another one's setup may end, and clear its own, at any time.
        self.cache = store.scratch(f"uv-{sys.version_info.major}.{sys.version_info.minor}")
        self._host = host
        self._store = store

    def run(self, verb: str, *arguments: str, on_line: Callable[[str], None] | None = None) -> str:
        """Run `uv pip VERB` and return what it said.

        Raises:
            ToolError: It fails.
            StoreError: The disk is full.
        """
        from uv import find_uv_bin  # noqa: PLC0415 - only a setup needs it

        argv = [
            # uv tells of its downloads on standard error.
            *("/bin/sh", "-c", 'exec "$0" "$@" 2>&1'),
            *(find_uv_bin(), "pip", verb, *arguments),
            *("--python", sys.executable, "--only-binary", ":all:"),
            *(() if verb == "install" else ("--no-header", "--no-annotate", "--quiet")),
            *_index_options(self._host),
        ]
        done = run(argv, environment=self._environment(), check=False, on_line=on_line)
        if done.returncode == 0:
            return done.stdout
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        if "No space left on device" in done.stdout:
            raise StoreError(
                f"no space is left for the store {self._store.root} while torch and transformers are set up",
                hint="run `edgebuild cache prune`, or choose another place with --cache DIR",
            )
        reason = next((line for line in said if line.startswith(("error:", "×"))), "no reason given")
        cause = next((line for line in reversed(said) if line.startswith("cause:")), "")
        reason = "; ".join(part.partition(":")[2].strip() or part for part in (reason, cause) if part)
        raise ToolError(
            f"torch and transformers cannot be set up: {reason.strip(' ×')}",
            hint="check the network and the index that pip or uv are configured with (PIP_INDEX_URL); what arrived is kept for the next try",
        )

    def _environment(self) -> Mapping[str, str]:
        own = {"UV_CACHE_DIR": str(self.cache), "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}
        certificates = self._host.environment.get("PIP_CERT")
        if certificates and "SSL_CERT_FILE" not in self._host.environment:
            own["SSL_CERT_FILE"] = certificates
        return {**self._host.environment, **own}


def _index_options(host: Host) -> list[str]:
    settings = read_pip_settings(host)
    options = ["--default-index", settings.index_url] if settings.index_url else []
    options += [word for url in settings.extra_index_urls for word in ("--index", url)]
    options += [word for place in settings.find_links for word in ("--find-links", place)]
    # pip takes the best of all indexes, so that whoever configured it expects that.
    return [*options, "--index-strategy", "unsafe-best-match"]

"""Fixtures around llama.cpp for the host: the package folder, small models, and real edgeserve processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgebuild.engine.native import EMULATOR
from edgebuild.oci.layer import Role
from edgebuild.plan import ARTIFACTS
from tests.support.built import host_artifact
from tests.support.tiny_gguf import write_scripted_gguf, write_tiny_gguf

SERVER = Path(__file__).parents[2] / "images" / "server"
MODEL_NAME = "tiny"
EURO = "€".encode()
SMILE = "😀".encode()
# What the scripted model says after which last word of the prompt; "\n" ends the prompt of every chat.
SCRIPTS: Mapping[str, tuple[str | bytes, ...]] = {
    "go": ("Hello", " wor", "ld", EURO[:1], EURO[1:], " EN", "D of", " story"),
    "\n": ("I", " am", " fine", "."),
    "torn": ("ab", SMILE[:2]),
    "loop": ("la", " li", " lo", " lu"),
    "flood": ("f" * 9000, "g" * 9000),
}
# Overrides of a server that serves gRPC too.
GRPC: Mapping[str, Any] = {"server.grpc": {"enabled": True, "port": 0}}
_STARTUP_S = 30.0


@pytest.fixture(scope="session")
def llama_host(built_store: Path, built_lock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the package `llama_cpp` for this machine, as it goes into images; EDGEBUILD_LLAMA_HOST names another.

    It is a copy: a test's Python may write bytecode, which in the store would be damage.
    """
    given = os.environ.get("EDGEBUILD_LLAMA_HOST")
    if given:
        return Path(given)
    tree = host_artifact(ARTIFACTS[Role.ENGINE], built_store, built_lock)
    return shutil.copytree(tree, tmp_path_factory.mktemp("llama") / "tree")


@pytest.fixture(scope="session")
def qemu_host(built_store: Path, built_lock: Path) -> Path:
    """The folder of the emulators that run on this machine; EDGEBUILD_QEMU_HOST names another."""
    given = os.environ.get("EDGEBUILD_QEMU_HOST")
    return Path(given) if given else host_artifact(EMULATOR, built_store, built_lock)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random 32-bit weights: its greedy answers depend on the whole prompt, not on the batch."""
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", dtype="f32", context_tokens=2048)


@pytest.fixture(scope="session")
def scripted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says `SCRIPTS`; after "loop" and "flood" it never ends."""
    path = tmp_path_factory.mktemp("scripted") / "scripted.gguf"
    return write_scripted_gguf(path, scripts=SCRIPTS, loops=("loop", "flood"), context_tokens=1 << 16)


class ServerProcess:
    """A running `python -m edgeserve serve` and what it has logged."""

    def __init__(self, process: subprocess.Popen[str], environment: Mapping[str, str]) -> None:
        self.process = process
        self.environment = dict(environment)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, pattern: str, timeout_s: float = _STARTUP_S) -> re.Match[str]:
        """Wait for a log line."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in tuple(self.lines):
                match = re.search(pattern, line)
                if match is not None:
                    return match
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"no log line matches {pattern!r}; the log:\n{self.log}")

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def port(self) -> int:
        return int(self.wait_for(r" start .* port=(\d+)")[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.wait_for(r' grpc .*port=([0-9]+)')[1]}"

    @property
    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024

    def terminate(self, timeout_s: float = 20.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 20.0) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code


def write_runtime(folder: Path, model: Path, overrides: Mapping[str, Any] | None = None) -> Path:
    """Write a runtime.json for tests.

    Args:
        overrides: Dotted keys and their values, such as `{"server.limits.queue": 0}`.
    """
    document: dict[str, Any] = {
        "schema_version": 1,
        "profile": "test",
        "model": {"name": MODEL_NAME, "files": [str(model)]},
        # One thread: with more, every barrier in a forward pass waits for a busy machine's scheduler.
        "engine": {"context_tokens": 1024, "slots": 2, "threads": 1},
        "server": {
            "host": "127.0.0.1",
            "port": 0,
            "limits": {"prompt_tokens": 512, "output_tokens": 512, "body_bytes": 65536, "queue": 16},
        },
    }
    for key, value in (overrides or {}).items():
        target = document
        *above, last = key.split(".")
        for part in above:
            target = target.setdefault(part, {})
        target[last] = value
    path = folder / "runtime.json"
    path.write_text(json.dumps(document))
    return path


def server_environment(llama_host: Path, runtime: Path) -> dict[str, str]:
    """The environment of the image, with this machine's Python and dependencies."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{SERVER}:{llama_host}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "EDGE_RUNTIME": str(runtime),
    }


def run_edgeserve(
    environment: Mapping[str, str], *arguments: str, prefix: Sequence[str | Path] = (), timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command of edgeserve to its end.

    Args:
        prefix: What stands before this Python, such as an emulator.
    """
    return subprocess.run(
        [*prefix, Path(sys.executable), "-P", "-m", "edgeserve", *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextlib.contextmanager
def running_server(
    llama_host: Path,
    folder: Path,
    model: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    wait_ready: bool = True,
) -> Iterator[ServerProcess]:
    """Run a server until the block ends."""
    given = server_environment(llama_host, write_runtime(folder, model, overrides)) | dict(environment or {})
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "edgeserve", "serve"],
        env=given,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    server = ServerProcess(process, given)
    try:
        if wait_ready:
            server.wait_for(" ready ")
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        server.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture(scope="session")
def scripted_server(
    llama_host: Path, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One server with the scripted model for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("scripted-server")
    with running_server(llama_host, folder, scripted_model, GRPC) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_server(
    llama_host: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One server with the random model for all tests that leave it as it is."""
    with running_server(llama_host, tmp_path_factory.mktemp("tiny-server"), tiny_model, GRPC) as server:
        yield server

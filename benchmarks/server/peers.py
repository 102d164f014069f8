"""The servers of others, with the same model, threads and context: Debian's llama-server, and llama-cpp-python's own."""

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uv import find_uv_bin

from edgebuild.smoke import free_port
from tests.support.peers.fetch import peer_prefix
from tests.support.peers.tool import BASE_PATH, ENDS_WITH_US, loader_argv, running
from tests.support.unpacked import Running, Unpacked, wait_for_log

LLAMA_SERVER, LLAMA_CPP_PYTHON = "llama-server", "llama_cpp.server"
# What `llama_cpp.server` imports (the extra "server" in llama-cpp-python's pyproject.toml).
_REQUIREMENTS = (
    "diskcache==5.6.3",
    "fastapi==0.165.0",
    "jinja2==3.1.6",
    "numpy==2.4.6",
    "pydantic-settings==2.16.3",
    "pyyaml==6.0.4",
    "sse-starlette==3.7.0",
    "starlette-context==0.5.1",
    "typing-extensions==4.16.0",
    "uvicorn==0.54.0",
)
# Its backends are files of their own, which it does not look for beside itself.
_LAUNCHER = """\
import ctypes, os, runpy
folder = os.environ["LLAMA_CPP_LIB_PATH"]
ctypes.CDLL(folder + "/libggml.so").ggml_backend_load_all_from_path(os.fsencode(folder))
runpy.run_module("llama_cpp.server", run_name="__main__")
"""


@contextmanager
def llama_server(
    folder: Path, model: Path, *, context_tokens: int, slots: int, threads: int
) -> Iterator[Running]:
    """Start Debian's llama-server; only its web page is left out.

    Args:
        folder: Where it works.
        model: The GGUF file.
        context_tokens: Of one slot.
        slots: Requests at the same time.
        threads: Computing threads.
    """
    prefix, port, log = peer_prefix("llama-server"), free_port(), folder / "llama-server.log"
    argv: list[str | Path] = [
        *ENDS_WITH_US, *loader_argv(prefix, "usr/bin/llama-server", folders=("llama",)), "--model", model, "--alias", LLAMA_SERVER,
        "--host", "127.0.0.1", "--port", str(port), "--ctx-size", str(context_tokens * slots),
        "--parallel", str(slots), "--threads", str(threads), "--no-webui",
    ]  # fmt: skip
    # It finds its CPU variants in the working directory.
    backends = prefix / "usr/lib/x86_64-linux-gnu/ggml/backends0"
    environment = {"PATH": BASE_PATH, "HOME": os.fspath(folder), "LANG": "C.UTF-8"}
    with running(argv, log=log, environment=environment, cwd=backends) as process:
        begin_s = time.monotonic()
        ready_s = wait_for_log(process, log, "listening on") - begin_s
        yield Running(
            name=LLAMA_SERVER, port=port, model=LLAMA_SERVER, pid=process.pid, ready_s=ready_s, log=log
        )


@contextmanager
def llama_cpp_python(
    folder: Path, image: Unpacked, python: Path, *, context_tokens: int, threads: int
) -> Iterator[Running]:
    """Start llama-cpp-python's server over the libraries of our image, so that nothing is compiled.

    It answers one request at a time; those that come meanwhile wait (`interrupt_requests`, on by default, would cut off
    the one that runs).

    Args:
        folder: Where it works.
        image: Has model and libraries.
        python: Of an environment made for it (`make_environment`).
        context_tokens: Of the one sequence.
        threads: Computing threads.
    """
    port, log = free_port(), folder / "llama-cpp-python.log"
    library = next(image.root.glob("opt/edge/engine/llama_cpp/lib"))
    argv: list[str | Path] = [
        *ENDS_WITH_US, python, "-c", _LAUNCHER, "--model", image.model_file, "--model_alias", LLAMA_CPP_PYTHON,
        "--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(context_tokens), "--n_threads", str(threads),
        "--n_threads_batch", str(threads), "--interrupt_requests", "False", "--verbose", "False",
    ]  # fmt: skip
    environment = {
        "PATH": BASE_PATH,
        "HOME": os.fspath(folder),
        "LANG": "C.UTF-8",
        "LLAMA_CPP_LIB_PATH": os.fspath(library),
    }
    with running(argv, log=log, environment=environment, cwd=folder) as process:
        begin_s = time.monotonic()
        ready_s = wait_for_log(process, log, "Uvicorn running on") - begin_s
        yield Running(
            name=LLAMA_CPP_PYTHON,
            port=port,
            model=LLAMA_CPP_PYTHON,
            pid=process.pid,
            ready_s=ready_s,
            log=log,
        )


def make_environment(folder: Path, sdist: Path) -> Path:
    """Make a virtual environment for llama-cpp-python's server; return its Python.

    Args:
        folder: Where it goes.
        sdist: llama-cpp-python's source archive.
    """
    uv, python = find_uv_bin(), folder / "bin/python"
    for argv in (
        (uv, "venv", "--quiet", "--python", sys.executable, folder),
        (uv, "pip", "install", "--quiet", "--python", python, *_REQUIREMENTS),
    ):
        subprocess.run(argv, check=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    with tarfile.open(sdist) as archive:
        for member in archive:
            _, _, name = member.name.partition("/")
            if name.startswith("llama_cpp/") and name.endswith(".py"):
                source = archive.extractfile(member)
                assert source is not None
                path = packages / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(source.read())
    return python

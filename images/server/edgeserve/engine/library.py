"""Finds and loads llama.cpp: the ctypes module `llama_cpp.llama_cpp`, its libraries and the CPU variant that fits.

1. Import the module from a package whose `__init__` is empty, so that numpy is not needed.
2. Take over llama.cpp's log, before it writes anything.
3. Load ggml's backends from the library folder. llama.cpp itself searches only the executable's folder and the working
   directory (ggml-backend-reg.cpp, ggml_backend_load_best), and no model loads without a backend.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from edgeserve.engine.protocol import EngineError
from edgeserve.log import Log

_VARIABLE: Final = "LLAMA_CPP_LIB_PATH"
_VARIANT: Final = re.compile(r"/(libggml-cpu(?:-([\w.]+))?\.so)$")
_MAX_THREADS: Final = 512  # GGML_MAX_N_THREADS, ggml.h
# How long a thread looks for the next pass before it sleeps, in 131 072 rounds (ggml-cpu.c, ggml_graph_compute_poll_for_work): a
# few milliseconds, enough between two tokens. ggml's own 50 keep a core busy for a tenth of a second after each answer.
_POLL: Final = 1
# Where all cores compute, the event loop gets one at once and has its few instructions done the sooner.
_NICE: Final = 10
_LEVEL_WARNING, _LEVEL_ERROR, _LEVEL_CONTINUATION = 3, 4, 5  # enum ggml_log_level, ggml.h


class _ThreadpoolParams(ctypes.Structure):
    """`struct ggml_threadpool_params` of ggml.h."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * _MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def library_folder(directory: str) -> Path | None:
    """Return the folder of the libraries: the one given, or the one beside the module; None if there is no such module."""
    given = directory or os.environ.get(_VARIABLE)
    if given:
        return Path(given)
    spec = importlib.util.find_spec("llama_cpp")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "lib"


class Library:
    """llama.cpp in this process; `api` is the ctypes module, `cpu_variant` the backend that ggml chose."""

    # llama.cpp calls the last one for as long as the process lives.
    _callbacks: ClassVar[list[Any]] = []

    def __init__(self, directory: str, log: Log) -> None:
        self._lines: deque[str] = deque(maxlen=8)
        self._log = log
        self.api = _import_module(directory)
        folder = library_folder(directory)
        assert folder is not None
        self.directory = folder
        callback = self.api.llama_log_callback(self._on_log)
        self._callbacks.append(callback)
        self.api.llama_log_set(callback, None)
        ggml = _open(self.directory / "libggml.so")
        ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
        ggml.ggml_backend_load_all_from_path.restype = None
        ggml.ggml_backend_load_all_from_path(os.fsencode(self.directory))
        self._cpu_path, self.cpu_variant = _loaded_variant()
        if not self._cpu_path:
            raise EngineError(
                f"{self.directory}: no libggml-cpu-*.so there runs on this processor{self.last_complaint()}"
            )
        self.api.llama_backend_init()

    def make_threadpool(self, threads: int) -> int:
        """Start `threads` computing threads that live until `free_threadpool`.

        Without one, ggml starts and ends its threads in every forward pass (ggml-cpu.c, ggml_graph_compute). They are a
        little nicer than the other threads of the server; the one that asks for a pass computes too, and is not.

        Returns:
            The address of the pool, or 0 if the library has none.
        """
        cpu = _open(Path(self._cpu_path))
        cpu.ggml_threadpool_new.argtypes = [ctypes.POINTER(_ThreadpoolParams)]
        cpu.ggml_threadpool_new.restype = ctypes.c_void_p
        base = _open(self.directory / "libggml-base.so")
        params = _ThreadpoolParams()
        base.ggml_threadpool_params_init.argtypes = [ctypes.POINTER(_ThreadpoolParams), ctypes.c_int]
        base.ggml_threadpool_params_init.restype = None
        base.ggml_threadpool_params_init(ctypes.byref(params), threads)
        params.poll = _POLL
        made: list[int] = []

        def make() -> None:
            # The kernel's threads have a nice value each, and inherit that of the one that starts them (sched(7)).
            with suppress(OSError):  # a sandbox that forbids it costs a little speed
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
            made.append(cpu.ggml_threadpool_new(ctypes.byref(params)) or 0)

        starter = threading.Thread(target=make, name="pool")
        starter.start()
        starter.join()
        return made[0]

    def free_threadpool(self, pool: int) -> None:
        """End the threads of a pool."""
        cpu = _open(Path(self._cpu_path))
        cpu.ggml_threadpool_free.argtypes = [ctypes.c_void_p]
        cpu.ggml_threadpool_free.restype = None
        cpu.ggml_threadpool_free(pool)

    def last_complaint(self) -> str:
        """Return what llama.cpp last said was wrong, as `: text`, or an empty string."""
        return f": {' / '.join(self._lines)}" if self._lines else ""

    def forget_complaints(self) -> None:
        """Start afresh, so that `last_complaint` is about what comes next."""
        self._lines.clear()

    def _on_log(self, level: int, text: bytes, _data: object) -> None:
        if level not in {_LEVEL_WARNING, _LEVEL_ERROR}:
            return
        line = text.decode("utf-8", "replace").strip()
        if not line:
            return
        if level == _LEVEL_ERROR:
            self._lines.append(line)
            self._log.error("engine", message=line)
        else:
            self._log.warning("engine", message=line)


def _import_module(directory: str) -> Any:
    if directory:
        # llama_cpp.py reads it once, when it is imported.
        os.environ[_VARIABLE] = directory
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"llama_cpp cannot be loaded: {error}") from error


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"{path}: cannot be loaded: {error}") from error


def _loaded_variant() -> tuple[str, str]:
    """Find the CPU backend among the files that this process has mapped.

    Returns:
        Its path and its variant (`armv8.2_2`, `haswell`, …; `default` for a build with one), or two empty strings.
    """
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:  # noqa: PTH123
        for line in maps:
            path = line.rstrip("\n").partition("/")
            match = _VARIANT.search("/" + path[2])
            if match is not None:
                return "/" + path[2], match.group(2) or "default"
    return "", ""

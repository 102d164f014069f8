"""Does one of the image's CPU variants run on this processor? Asked before any code of theirs runs, which would end in SIGILL."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgeserve import exits
from edgeserve.kernel import processor_features, processor_name
from edgeserve.preflight.results import Finding, Result

_PREFIX: Final = "libggml-cpu-"
# What a variant is compiled for, in the words of /proc/cpuinfo: says why one does not run. Whether it does, the library knows.
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "sse42": ("sse4_2",),
    "haswell": ("sse4_2", "avx", "avx2", "bmi2", "f16c", "fma"),
    "alderlake": ("avx2", "avx_vnni", "bmi2", "f16c", "fma"),
    "icelake": ("avx2", "avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vnni"),
    "armv8.2_2": ("asimddp", "asimdhp"),
    "armv8.6_2": ("asimddp", "asimdhp", "i8mm", "sve", "sve2"),
}


def check_cpu(folder: Path) -> Result:
    """Ask every variant in the library folder whether it runs here.

    Each exports `ggml_backend_score`, which is compiled for the architecture's baseline and returns 0 where the processor
    lacks something (ggml-backend-impl.h, GGML_BACKEND_DL_SCORE_IMPL). It asks the processor itself, so that an emulated
    one is judged as what it emulates, whatever /proc/cpuinfo says.
    """
    libraries = sorted(folder.glob(_PREFIX + "*.so"))
    with suppress(OSError):
        # What they share stays: it leaves functions for the end of the process, which must be there then.
        ctypes.CDLL(str(folder / "libggml-base.so"))
    scores = {path.name.removeprefix(_PREFIX).removesuffix(".so"): _score(path) for path in libraries}
    if not libraries and not (folder / "libggml-cpu.so").exists():
        return _failed(
            f"{folder}: no libggml-cpu-*.so there", "build the image again, or correct engine.library_dir"
        )
    runnable = [variant for variant, score in scores.items() if score]
    if libraries and not runnable:
        features = processor_features()
        lacking = (f"{variant}{_lacks(variant, features)}" for variant in scores)
        return _failed(
            f"this processor ({processor_name()}) runs none of the image's variants: {', '.join(lacking)}",
            "build the image with a CPU variant that this processor has; all that edgebuild knows are in its default build",
        )
    return Result(
        check="cpu", seen={"processor": processor_name(), "variants": ",".join(runnable) or "default"}
    )


def _failed(problem: str, remedy: str) -> Result:
    finding = Finding(problem=problem, remedy=remedy, exit_code=exits.CPU)
    return Result(check="cpu", seen={}, findings=(finding,))


def _lacks(variant: str, features: frozenset[str] | None) -> str:
    lacking = [name for name in _NEEDS.get(variant, ()) if features is not None and name not in features]
    return f" (lacks {' '.join(lacking)})" if lacking else ""


def _score(path: Path) -> int:
    """Return the library's own score, 0 for one that does not load: ggml passes it over, too."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return 0
    try:
        function = library.ggml_backend_score
        function.argtypes, function.restype = [], ctypes.c_int
        return int(function())
    except AttributeError:
        return 1
    finally:
        # Which variant is loaded is later read from what is mapped (engine/library.py).
        close = ctypes.CDLL(None).dlclose
        close.argtypes = [ctypes.c_void_p]
        close(library._handle)  # noqa: SLF001 - ctypes has no public way to unload

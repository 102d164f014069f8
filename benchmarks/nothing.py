"""`make image` from nothing: a copy of the checkout without its .venv, an empty store and empty caches of pip and uv.

Takes many minutes, nearly all of them llama.cpp's compilation; only with --full.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.measuring import measure
from benchmarks.surroundings import ROOT

QUANTISING_LIMIT_S = 9 * 60
LIMIT_S = 6 * 60
MEMORY_LIMIT_BYTES = 200_000_000


def run(bench: Bench) -> Iterator[Figure]:
    """Time both, and look at the builder's memory meanwhile: a poll costs nothing beside a compiler."""
    for name, flags, limit_s in (
        ("make image from nothing, with quantising", "", QUANTISING_LIMIT_S),
        ("make image from nothing, without quantising", "--quantization F16", LIMIT_S),
    ):
        checkout, caches = bench.folder / "clone", bench.folder / "caches"
        _copy_sources(checkout)
        environment = bench.environment() | {
            "EDGEBUILD_CACHE": os.fspath(caches / "edgebuild"),
            "XDG_CACHE_HOME": os.fspath(caches),
            "PIP_CACHE_DIR": os.fspath(caches / "pip"),
            "UV_CACHE_DIR": os.fspath(caches / "uv"),
        }
        argv = ("make", "image", f"MODEL={bench.model}", f"IMAGE_FLAGS={flags}")
        done = measure(argv, cwd=checkout, environment=environment, watch=True)
        yield Figure(name=name, unit="s", ours=done.wall_s, limit=limit_s)
        yield Figure(
            name=f"memory: {name} (compiler and emulator left out)",
            unit="B",
            ours=done.peak_bytes,
            limit=MEMORY_LIMIT_BYTES,
            note=f"at the peak: {done.at_peak}",
        )
        shutil.rmtree(checkout)
        shutil.rmtree(caches)


def _copy_sources(target: Path) -> None:
    """Copy what git knows or would take."""
    listed = subprocess.run(
        ("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)

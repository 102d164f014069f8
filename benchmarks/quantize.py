"""Quantising a model, beside the bare call of llama.cpp's library that does it."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench, document
from benchmarks.figures import Figure, Peer, best
from benchmarks.measuring import measure
from edgebuild.gguf_types import FILE_TYPES
from tests.support.built import host_artifact
from tests.support.tiny_gguf import write_tiny_gguf

RATIO_LIMIT = 1.1
_TYPE = "Q4_K_M"
_ROUNDS = 5
_BARE = """\
import ctypes, sys
from llama_cpp import llama_cpp
llama_cpp.llama_backend_init()
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.nthread = int(sys.argv[3]), int(sys.argv[4])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)))
"""


def run(bench: Bench) -> Iterator[Figure]:
    """Quantise one model in turn by the command and by the bare call."""
    model = write_tiny_gguf(
        bench.folder / "benchmark-quantize.gguf",
        dim=768,
        ff=1536,
        layers=2 if bench.quick else 22,  # not the model of `server`, which the store may hold
        vocabulary_tokens=32000,
        context_tokens=2048,
    )
    package = host_artifact("llama-cpp", bench.cache, bench.lock)
    number = {name: number for number, name in FILE_TYPES.items()}[_TYPE]
    threads = str(len(os.sched_getaffinity(0)))
    environment = {"PYTHONPATH": os.fspath(package), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}

    def bare() -> float:
        result = bench.folder / "bare.gguf"
        argv = (sys.executable, "-P", "-B", "-c", _BARE, model, result, str(number), threads)
        took = measure(argv, cwd=bench.folder, environment=environment).wall_s
        result.unlink()
        return took

    def ours() -> float:
        _touch(model)
        run = bench.image(
            "--profile", "x86", "--model", model, "--quantization", _TYPE, "--no-test", "--output", "layout"
        )
        # What was made is made again in the next round.
        for path in (bench.cache / "v1/model").glob(f"*/{model.stem}.{_TYPE}.gguf"):
            shutil.rmtree(path.parent)
        # Whatever else the command does is not compared: packages, layers, the layout.
        return float(document(run)["images"][0]["seconds"]["quantize"])

    bare()
    ours()
    pairs = []
    for number in range(bench.rounds(_ROUNDS)):
        first = bare() if number % 2 else None
        mine = ours()
        pairs.append((mine, first or bare()))
    samples = tuple(mine for mine, _ in pairs)
    yield Figure(
        name=f"quantise {model.stat().st_size / 1e6:.0f} MB to {_TYPE}",
        unit="s",
        ours=best(samples),
        peers=(
            Peer(
                name="bare library call",
                value=best(tuple(theirs for _, theirs in pairs)),
                ratios=tuple(mine / theirs for mine, theirs in pairs),
                ratio_at_most=RATIO_LIMIT,
            ),
        ),
        samples=samples,
        note="the command's own step, which reads the headers and hashes the model too",
    )


def _touch(model: Path) -> None:
    """Make the model one that was not hashed yet."""
    os.utime(model, ns=(time.time_ns(), time.time_ns()))

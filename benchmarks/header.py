"""Reading the header of a large model: `edgebuild fit` for every profile, beside the reader of llama.cpp's own package."""

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench, write_model
from benchmarks.figures import Figure, Peer, best
from benchmarks.measuring import Run, measure, repeat, walls

FIT_LIMIT_S = 0.300
MEMORY_LIMIT_BYTES = 100_000_000
_MODEL_BYTES = 2 << 30
_VOCABULARY = 150_000


def run(bench: Bench) -> Iterator[Figure]:
    """Time it, and look at its memory."""
    model = write_model(bench.folder / "large.gguf", bench.size(_MODEL_BYTES), vocabulary=_VOCABULARY)
    rounds = bench.rounds(5)
    environment = bench.environment()
    dump = Path(sys.executable).with_name("gguf-dump")

    def ours(*, watch: bool = False) -> Run:
        return bench.edgebuild("fit", "--model", model, "--json", watch=watch)

    def theirs(*, watch: bool = False) -> Run:
        argv = (dump, "--no-tensors", model)
        return measure(argv, cwd=bench.folder, environment=environment, watch=watch)

    def small() -> Run:
        return bench.edgebuild("fit", "--model", bench.model, "--json")

    small_samples = walls(repeat(rounds, small))
    yield Figure(
        name="the demo model, fitted to every profile",
        unit="s",
        ours=best(small_samples),
        limit=FIT_LIMIT_S,
        samples=small_samples,
        note=f"best of {rounds}; Python's start included",
    )
    samples = walls(repeat(rounds, ours))
    name = f"header of a model of {model.stat().st_size / 1e9:.1f} GB with {_VOCABULARY} tokens, fitted to every profile"
    yield Figure(
        name=name,
        unit="s",
        ours=best(samples),
        peers=(Peer(name="gguf-dump --no-tensors", value=theirs().wall_s),),
        samples=samples,
        note=f"best of {rounds}; the peer once, as it takes long",
    )
    yield Figure(
        name="memory: the same",
        unit="B",
        ours=ours(watch=True).peak_bytes,
        limit=MEMORY_LIMIT_BYTES,
        peers=(Peer(name="gguf-dump --no-tensors", value=theirs(watch=True).peak_bytes),),
    )

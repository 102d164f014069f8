"""How long a new large model takes on its way into a layout, against the limits of copying and of hashing it.

In each round, one after the other, on the same file: `cp`, `openssl dgst -sha256`, and the command `edgebuild image`
without smoke test and signature, as it is and with the model in one layer instead of shards. The best of the rounds
count, after one that warms up.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bench import Bench, document, write_model
from benchmarks.figures import Figure, Peer, best
from benchmarks.measuring import measure

LIMIT = 1.3
ROUNDS = 5
_MODEL_BYTES = 2 << 30
_PEERS = ("cp", "openssl dgst -sha256")
_WHAT = {
    "command": "the command",
    "step": "its step that copies and hashes",
    "uncut command": "the command, the model in one layer",
    "uncut step": "its step, the model in one layer",
}


def run(bench: Bench) -> Iterator[Figure]:
    """Time all in turn."""
    model = write_model(bench.folder / "model.gguf", bench.size(_MODEL_BYTES))
    small = write_model(bench.folder / "small.gguf", 1 << 20)
    samples = _measure(bench, model, small)
    found = {name: best(values) for name, values in samples.items()}
    peers = tuple(Peer(name=name, value=found[name]) for name in _PEERS)
    limit_s = LIMIT * max(peer.value for peer in peers)
    size = f"{model.stat().st_size / (1 << 30):.1f} GiB"
    for name, what in _WHAT.items():
        yield Figure(
            name=f"new model of {size} to a layout: {what}",
            unit="s",
            ours=found[name],
            limit=limit_s,
            peers=peers,
            samples=samples[name],
            note=f"best of {bench.rounds(ROUNDS)}; at most {LIMIT} x the slower peer",
        )
    yield Figure(
        name="the same command with a model of 1 MiB", unit="s", ours=found["small"], samples=samples["small"]
    )


def _measure(bench: Bench, model: Path, small: Path) -> dict[str, tuple[float, ...]]:
    copy, layout = bench.folder / "copy", bench.folder / "layout"
    environment = bench.environment()
    samples: dict[str, list[float]] = {name: [] for name in (*_PEERS, *_WHAT, "small")}

    def program(name: str, *argv: str | Path) -> None:
        done = measure((*name.split(), *argv), cwd=bench.folder, environment=environment)
        samples[name].append(done.wall_s)

    def command(cut: str, *options: str) -> None:
        # Its times are new in each round, so that no digest of it is known.
        os.utime(model)
        done = _image(bench, model, *options)
        samples[f"{cut}command"].append(done[0])
        samples[f"{cut}step"].append(done[1])

    ways: tuple[Callable[[], None], ...] = (
        lambda: program("cp", model, copy),
        lambda: program("openssl dgst -sha256", model),
        lambda: command(""),
        lambda: command("uncut ", "--shard-size", "none"),
        lambda: samples["small"].append(_image(bench, small)[0]),
    )
    for _ in range(bench.rounds(ROUNDS) + 1):
        for way in ways:
            copy.unlink(missing_ok=True)
            shutil.rmtree(layout, ignore_errors=True)
            os.sync()
            way()
    return {name: tuple(values[1:]) for name, values in samples.items()}


def _image(bench: Bench, model: Path, *options: str) -> tuple[float, float]:
    """Build; return the seconds of the command, and of its step that copies and hashes the model."""
    done = bench.image("--profile", "x86", "--model", model, "--output", "layout", "--no-test", *options)
    return done.wall_s, document(done)["images"][0]["seconds"]["model"]

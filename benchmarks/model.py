"""How long a new large model takes on its way into a layout, against the limits of copying and of hashing it.

In each round, one after the other, on the same file: `cp`, `openssl dgst -sha256`, the whole command `edgebuild image`
without smoke test and signature, and its inner part alone: the copy with its digest. The best of the rounds count, after
one that warms up.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator

from benchmarks.bench import Bench, write_model
from benchmarks.figures import Figure, Peer, best
from benchmarks.measuring import Run, measure
from edgebuild.oci.layout import LayoutSink
from edgebuild.oci.tar import model_tar
from edgebuild.progress import SilentProgress

LIMIT = 1.3
ROUNDS = 5
_MODEL_BYTES = 2 << 30


def run(bench: Bench) -> Iterator[Figure]:
    """Time all four in turn."""
    model = write_model(bench.folder / "model.gguf", bench.size(_MODEL_BYTES))
    copy, layout = bench.folder / "copy", bench.folder / "layout"
    environment = bench.environment()

    def program(*argv: str) -> Callable[[], float]:
        return lambda: measure(argv, cwd=bench.folder, environment=environment).wall_s

    def command() -> float:
        # Its times are new in each round, so that no seal of it is known.
        os.utime(model)
        return _image(bench, "--model", os.fspath(model)).wall_s

    # What the command needs without a model of any size: its start, the lock, the other layers.
    small = write_model(bench.folder / "small.gguf", 1 << 20)
    ways: dict[str, Callable[[], float]] = {
        "cp": program("cp", os.fspath(model), os.fspath(copy)),
        "openssl dgst -sha256": program("openssl", "dgst", "-sha256", os.fspath(model)),
        "command": command,
        "copy": lambda: _copy_alone(bench),
        "small": lambda: _image(bench, "--model", os.fspath(small)).wall_s,
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.rounds(ROUNDS) + 1):
        for name, way in ways.items():
            copy.unlink(missing_ok=True)
            shutil.rmtree(layout, ignore_errors=True)
            os.sync()
            samples[name].append(way())
    found = {name: best(values[1:]) for name, values in samples.items()}
    slower = max(found["cp"], found["openssl dgst -sha256"])
    peers = tuple(Peer(name=name, value=found[name]) for name in ("cp", "openssl dgst -sha256"))
    size = f"{model.stat().st_size / (1 << 30):.1f} GiB"
    yield Figure(
        name=f"new model of {size} to a layout: the command",
        unit="s",
        ours=found["command"],
        limit=LIMIT * slower,
        peers=peers,
        samples=tuple(samples["command"][1:]),
        note=f"best of {bench.rounds(ROUNDS)}; at most {LIMIT} x the slower peer",
    )
    yield Figure(
        name=f"new model of {size} to a layout: the copy alone",
        unit="s",
        ours=found["copy"],
        limit=LIMIT * slower,
        peers=peers,
        samples=tuple(samples["copy"][1:]),
    )
    yield Figure(name="the command with a model of 1 MiB", unit="s", ours=found["small"])


def _image(bench: Bench, *arguments: str) -> Run:
    return bench.image("--profile", "x86", *arguments, "--output", "layout", "--no-test")


def _copy_alone(bench: Bench) -> float:
    """Copy and hash as a build does, in this process; what is set up around it is not measured."""
    with LayoutSink(bench.folder / "layout", progress=SilentProgress()) as sink:
        begin_s = time.monotonic()
        sink.put_blob(model_tar(bench.folder / "model.gguf", "model.gguf").blob, digest=None, title="model")
        return time.monotonic() - begin_s

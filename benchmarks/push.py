"""How long 500 MB take to reach the distribution registry, beside crane and oras, and again when it has them.

All clients push the same layout, made by `edgebuild image`; each push goes to an empty registry of its own on this
machine, and the clients take turns.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bench import Bench, write_model
from benchmarks.figures import Figure, Peer, median
from benchmarks.measuring import Run, measure
from tests.support.peers.fetch import peer_prefix
from tests.support.peers.registry import Registry, running_registry

MEMORY_LIMIT_BYTES = 200_000_000
_MODEL_BYTES = 480_000_000
_OURS = "edgebuild push"
# A blob whose digest is not known: the layout is left out, and the model is hashed while it is sent.
_STRAIGHT = "edgebuild image --no-layout --push"
_TAG = "1"


def run(bench: Bench) -> Iterator[Figure]:
    """Time pushes and repeated pushes."""
    model = write_model(bench.folder / "model.gguf", bench.size(_MODEL_BYTES))
    shape = ("--profile", "x86", "--model", model, "--no-test")
    bench.image(*shape, "--output", "layout", "--tag", f"127.0.0.1:5000/bench:{_TAG}")
    layout = bench.folder / "layout"
    size_bytes = sum(path.stat().st_size for path in (layout / "blobs/sha256").iterdir())
    environment = bench.environment()
    crane, oras = (peer_prefix(name) / "usr/bin" / name for name in ("crane", "oras"))

    def ways(registry: Registry) -> dict[str, Callable[[bool], Run]]:
        name = registry.reference("bench", _TAG)

        def program(*argv: str | Path) -> Callable[[bool], Run]:
            return lambda watch: measure(argv, cwd=bench.folder, environment=environment, watch=watch)

        return {
            _OURS: lambda watch: bench.edgebuild("push", layout, name, watch=watch),
            "crane push": program(crane, "push", "--index", layout, name),
            "oras cp": program(oras, "cp", "--from-oci-layout", "--to-plain-http", f"{layout}:{_TAG}", name),
            _STRAIGHT: lambda watch: bench.image(*shape, "--no-layout", "--push", "--tag", name, watch=watch),
        }

    names = (_OURS, "crane push", "oras cp", _STRAIGHT)
    first: dict[str, list[float]] = {name: [] for name in names}
    again: dict[str, list[float]] = {name: [] for name in names}
    peak: dict[str, int] = {}
    # The last round looks at memory and is not timed.
    for number in range(bench.rounds(3) + 1):
        for name in names:
            with (
                tempfile.TemporaryDirectory(dir=bench.folder) as storage,
                running_registry(Path(storage) / "registry") as registry,
            ):
                way = ways(registry)[name]
                if number == bench.rounds(3):
                    peak[name] = way(True).peak_bytes  # noqa: FBT003 - its only argument
                    continue
                first[name].append(way(False).wall_s)  # noqa: FBT003 - its only argument
                again[name].append(way(False).wall_s)  # noqa: FBT003 - its only argument
    yield from _figures(f"push {size_bytes / 1e6:.0f} MB", first)
    yield from _figures("push what is there already", again)
    for name in (_OURS, _STRAIGHT):
        yield Figure(
            name=f"memory: {name}",
            unit="B",
            ours=peak[name],
            limit=MEMORY_LIMIT_BYTES,
            peers=tuple(Peer(name=peer, value=peak[peer]) for peer in names[1:3]),
        )


def _figures(what: str, samples: dict[str, list[float]]) -> Iterator[Figure]:
    peers = tuple(Peer(name=name, value=median(samples[name])) for name in ("crane push", "oras cp"))
    for name, more in ((_OURS, ""), (_STRAIGHT, " (builds, hashes and sends)")):
        yield Figure(
            name=f"{what}: {name}{more}",
            unit="s",
            ours=median(samples[name]),
            peers=peers,
            samples=tuple(samples[name]),
            note=f"median of {len(samples[name])}",
        )

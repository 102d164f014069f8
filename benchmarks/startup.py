"""How long the command takes to say what it can do, beside programs that are one binary."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Peer, best
from benchmarks.measuring import measure, repeat, walls
from tests.support.peers.fetch import peer_prefix

LIMIT_S = 0.150
ROUNDS = 20


def run(bench: Bench) -> Iterator[Figure]:
    """Time `--help`."""
    environment = bench.environment() | {"HOME": str(bench.folder)}
    rounds = bench.rounds(ROUNDS)

    def seconds(*argv: str | Path) -> tuple[float, ...]:
        return walls(repeat(rounds, lambda: measure(argv, cwd=bench.folder, environment=environment)))

    ours = seconds(*bench.program, "--help")
    programs = {
        "docker --help": peer_prefix("dockerd28") / "usr/bin/docker",
        "cosign --help": peer_prefix("cosign3") / "usr/bin/cosign",
        "crane --help": peer_prefix("crane") / "usr/bin/crane",
    }
    yield Figure(
        name="edgebuild --help",
        unit="s",
        ours=best(ours),
        limit=LIMIT_S,
        peers=tuple(Peer(name=name, value=best(seconds(path, "--help"))) for name, path in programs.items()),
        samples=ours,
        note=f"best of {rounds}",
    )

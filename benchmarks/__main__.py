"""Measures every figure, or those of the groups named, and shows them beside the peers' of the same run.

    python -m benchmarks [GROUP…] [--json FILE] [--quick] [--full]

The result is also written to benchmarks/results/. README.md says how each figure is measured. The exit code is 1 when a
limit was missed.
"""

import argparse
import importlib
import json
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import surroundings
from benchmarks.bench import Bench
from benchmarks.figures import Figure, render
from tests.support.peers.fetch import cache_root
from tests.support.peers.pins import load_pins

GROUPS = {
    "startup": "edgebuild --help",
    "header": "edgebuild fit of a large model",
    "memory": "memory planned beside what running images take",
    "quantize": "quantising",
    "builds": "builds with a warm store: time, sizes, memory",
    "model": "a new large model to a layout",
    "push": "push to a registry",
    "update": "bytes of an update",
    "rebuild": "another model, another server, beside buildx",
    "server": "answers: tokens per second, first token, memory, start, soak",
    "nothing": "make image from nothing (only with --full or by name)",
}
_SLOW = "nothing"
_RESULTS = surroundings.ROOT / "benchmarks/results"


def main() -> int:
    """Run the command line; return its exit code."""
    options = _parse()
    names = options.groups or [name for name in GROUPS if options.full or name != _SLOW]
    conditions = surroundings.describe()
    print(
        f"edgebuild {conditions['edgebuild']} at {conditions['commit']}, {conditions['cores']} cores of "
        f"{conditions['processor']}, load {conditions['load_at_start']}"
        + (", QUICK: small sizes, one round" if options.quick else ""),
        flush=True,
    )
    groups: list[dict[str, Any]] = []
    missed = False
    for name in names:
        load = surroundings.load_average()
        figures = _run_group(name, options)
        missed = missed or any(figure.is_missed for figure in figures)
        print(f"\n{name}: {GROUPS[name]} (load {load:.1f})\n{render(figures)}", flush=True)
        groups.append(
            {
                "group": name,
                "load_at_start": round(load, 2),
                "figures": [figure.document() for figure in figures],
            }
        )
    document = {
        "conditions": {**conditions, "quick": options.quick, "peers": _peer_versions()},
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "groups": groups,
    }
    path = options.json or _RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    print(f"\nwritten to {path}")
    return 1 if missed else 0


def _run_group(name: str, options: argparse.Namespace) -> list[Figure]:
    module = importlib.import_module(f"benchmarks.{name}")
    folder = Path(tempfile.mkdtemp(prefix=f"benchmark-{name}-", dir=options.folder))
    try:
        bench = Bench(
            folder=folder,
            cache=options.cache.absolute(),
            lock=(options.lock or options.cache.with_name("edgebuild.lock")).absolute(),
            model=options.model,
            quick=options.quick,
        )
        return list(module.run(bench))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _peer_versions() -> dict[str, str]:
    return {
        name: " ".join(f"{pin.package} {pin.version}" for pin in peer.pins)
        for name, peer in load_pins().items()
        if name
        in {
            "dockerd20",
            "dockerd28",
            "docker-plugins",
            "registry",
            "cosign3",
            "crane",
            "oras",
            "llama-server",
        }
    }


def _parse() -> argparse.Namespace:
    described = "\n".join(f"  {name:<9} {text}" for name, text in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(__doc__ or "").splitlines()[0],
        epilog=f"groups:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help="default: all that take minutes, not hours"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go, besides the screen")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: does everything work?")
    parser.add_argument("--full", action="store_true", help="also what starts from nothing")
    parser.add_argument("--folder", type=Path, help="where to work; needs about 20 GB")
    parser.add_argument("--cache", type=Path, default=cache_root() / "store", help="the store of the builds")
    parser.add_argument("--lock", type=Path, help="their lock file; default: edgebuild.lock beside the store")
    parser.add_argument("--model", default="demo", help="the 16-bit model that is quantised and asked")
    options = parser.parse_args()
    if unknown := [name for name in options.groups if name not in GROUPS]:
        parser.error(f"no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())

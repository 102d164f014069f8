"""How long a new model takes on its way into a layout, against the limits of copying and of hashing it.

    python -m benchmarks.model_copy [--size-mib 2048] [--rounds 5] [--folder DIR] [--json FILE]

In each round, one after the other, on the same file: `cp`, `openssl dgst -sha256`, and edgebuild's copy with its digest
into an empty layout. The best of the rounds count, after one that warms up. Our own time may be at most 1.3 times the
slower of the two. Processor seconds are shown too, as they bear other work on the machine better.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from edgebuild.oci.layout import LayoutSink
from edgebuild.oci.tar import model_tar
from edgebuild.progress import SilentProgress

LIMIT = 1.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The best of several rounds, in seconds: on the clock, and of processors."""

    name: str
    clock_s: float
    processor_s: float


def best(name: str, action: Callable[[], object], between: Callable[[], object], rounds: int) -> Timing:
    clock, processor = [], []
    for _ in range(rounds + 1):
        between()
        before, started = used_s(), time.monotonic()
        action()
        clock.append(time.monotonic() - started)
        processor.append(used_s() - before)
    return Timing(name=name, clock_s=min(clock[1:]), processor_s=min(processor[1:]))


def used_s() -> float:
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usage)


def make_model(path: Path, size_mib: int) -> None:
    """Write random bytes, as weights are to a disk."""
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(1 << 20))


def into_layout(model: Path, layout: Path) -> None:
    """Copy and hash as a build does; the blob is moved away, so that its removal is not measured."""
    with LayoutSink(layout, progress=SilentProgress()) as sink:
        sink.put_blob(model_tar(model, "model.gguf").blob, digest=None, title="model")
        next((layout / "blobs/sha256").glob("[0-9a-f]*")).replace(layout.with_name("kept"))


def measure(folder: Path, size_mib: int, rounds: int) -> tuple[Timing, ...]:
    model, copy, layout, kept = (folder / name for name in ("model", "copy", "layout", "kept"))
    make_model(model, size_mib)

    def clear() -> None:
        for path in (copy, kept):
            path.unlink(missing_ok=True)
        shutil.rmtree(layout, ignore_errors=True)
        os.sync()

    return (
        best("cp", lambda: subprocess.run(["cp", model, copy], check=True), clear, rounds),
        best(
            "openssl dgst -sha256",
            lambda: subprocess.run(["openssl", "dgst", "-sha256", model], check=True, capture_output=True),
            clear,
            rounds,
        ),
        best("edgebuild", lambda: into_layout(model, layout), clear, rounds),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; needs room for two models")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        timings = measure(Path(folder), options.size_mib, options.rounds)
    cp, openssl, ours = timings
    ratio = ours.clock_s / max(cp.clock_s, openssl.clock_s)
    for timing in timings:
        print(f"{timing.name:<22} {timing.clock_s:7.2f} s   {timing.processor_s:7.2f} s of processors")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"ratio to the slower    {ratio:7.2f}     (at most {LIMIT}); memory at most {peak_mib:.0f} MiB")
    if options.json:
        figures = {"timings": [asdict(timing) for timing in timings], "ratio": ratio, "limit": LIMIT}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())

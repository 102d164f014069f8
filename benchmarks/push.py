"""How long one large blob takes to reach the distribution registry, beside oras and crane, and in how much memory.

    python -m benchmarks.push [--bytes 500000000] [--rounds 3] [--chunk-bytes 67108864]

Every push goes to an empty registry of its own on this machine; the clients take turns. The ratio is of the medians,
to that of oras. Memory below that of this process itself (some 40 MB) cannot be seen.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebuild.registry.upload import CHUNK_BYTES
from tests.support.peers.fetch import peer_prefix
from tests.support.peers.registry import Registry, running_registry

OURS = """
import sys
from pathlib import Path
from edgebuild.oci.blob import Blob
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.progress import SilentProgress
from edgebuild.registry.push import open_sink
path, name, digest, chunk = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
with open_sink(Reference.parse(name), environment={}, progress=SilentProgress(), chunk_bytes=chunk) as sink:
    known = Digest.parse(digest) if digest else None
    sink.put_blob(Blob.of_file(path), digest=known, title="model")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    wall_s: float
    cpu_s: float
    peak_bytes: int


def write_model(folder: Path, size_bytes: int) -> tuple[Path, str]:
    """Write random bytes, and a layout around them for crane; return the file and its digest."""
    path, generator, hasher = folder / "model", random.Random(1), hashlib.sha256()
    with path.open("wb") as file:
        for offset in range(0, size_bytes, 1 << 22):
            chunk = generator.randbytes(min(1 << 22, size_bytes - offset))
            hasher.update(chunk)
            file.write(chunk)
    return path, hasher.hexdigest()


def write_layout(folder: Path, model: Path, digest: str) -> Path:
    layout = folder / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    os.link(model, blobs / digest)

    def put(document: object, media_type: str) -> dict[str, object]:
        raw = json.dumps(document).encode()
        name = hashlib.sha256(raw).hexdigest()
        (blobs / name).write_bytes(raw)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(raw)}

    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    config = put(
        {"os": "linux", "architecture": "amd64", "config": {}, "rootfs": rootfs},
        "application/vnd.oci.image.config.v1+json",
    )
    layer = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": f"sha256:{digest}",
        "size": model.stat().st_size,
    }
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = put(
        {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]}, media_type
    )
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return layout


def measure(argv: Sequence[str | Path], cwd: Path) -> Run:
    """Run a program; its wall time and peak memory."""
    begin_s = time.monotonic()
    process = subprocess.Popen(
        [os.fspath(word) for word in argv],
        cwd=cwd,
        env={**os.environ, "HOME": os.fspath(cwd)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode != 0:
        raise SystemExit(f"{argv[0]} failed: {said.decode(errors='replace')}")
    return Run(
        wall_s=time.monotonic() - begin_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
    )


def commands(
    registry: Registry, model: Path, layout: Path, digest: str, chunk_bytes: int
) -> dict[str, list[str | Path]]:
    """Name each way to push and its command line."""
    oras, crane = (peer_prefix(name) / "usr/bin" / name for name in ("oras", "crane"))
    ours: list[str | Path] = [sys.executable, "-c", OURS, model, registry.reference("bench/ours")]
    return {
        "edgebuild, digest unknown": [*ours, "", str(chunk_bytes)],
        "edgebuild, digest known": [*ours, f"sha256:{digest}", str(chunk_bytes)],
        "oras push": [oras, "push", "--plain-http", registry.reference("bench/oras"), model.name],
        "crane push of a layout": [crane, "push", layout, registry.reference("bench/crane")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=500_000_000, dest="size_bytes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk-bytes", type=int, default=CHUNK_BYTES)
    options = parser.parse_args()
    found: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        model, digest = write_model(folder, options.size_bytes)
        layout = write_layout(folder, model, digest)
        names = 4
        for turn in range(options.rounds * names):
            with (
                tempfile.TemporaryDirectory() as storage,
                running_registry(Path(storage) / "registry") as registry,
            ):
                ways = commands(registry, model, layout, digest, options.chunk_bytes)
                name = tuple(ways)[turn % names]
                found.setdefault(name, []).append(measure(ways[name], folder))
    reference_s = statistics.median(run.wall_s for run in found["oras push"])
    print(
        f"{options.size_bytes / 1e6:.0f} MB, {options.rounds} rounds, PATCHes of {options.chunk_bytes} bytes"
    )
    for name, runs in found.items():
        wall_s = statistics.median(run.wall_s for run in runs)
        peak = max(run.peak_bytes for run in runs) / 1e6
        cpu_s = statistics.median(run.cpu_s for run in runs)
        times = " ".join(f"{run.wall_s:.2f}" for run in runs)
        print(
            f"{name:28} {wall_s:6.2f} s  {wall_s / reference_s:5.2f} x  {cpu_s:5.2f} s CPU {peak:5.0f} MB  ({times})"
        )


if __name__ == "__main__":
    main()

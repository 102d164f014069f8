"""Memory: what the plan says beside what a running image takes, for models, caches and buffers of all kinds."""

import shutil
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from tests.support.resident import QUICK, SETTINGS, build_image, use_to_the_full

OFF_LIMIT = 0.1


def run(bench: Bench) -> Iterator[Figure]:
    """Build each image, use it to the full, and compare."""
    for number, setting in enumerate((QUICK,) if bench.quick else (QUICK, *SETTINGS)):
        folder = bench.folder / f"setting-{number}"
        folder.mkdir()
        image = build_image(setting, folder, build=bench.image)
        need_bytes = image.runtime["memory"]["need_bytes"]
        used = use_to_the_full(image)
        shutil.rmtree(folder)
        parts = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in used.parts.items())
        yield Figure(
            name=f"memory planned is off by: {setting.name}",
            unit="x",
            ours=abs(need_bytes / used.peak_bytes - 1),
            limit=OFF_LIMIT,
            note=f"{need_bytes / 1e6:.1f} MB planned, {used.peak_bytes / 1e6:.1f} MB taken at most; at the end {parts}",
        )

"""Builds with a warm store: again, after a change to the server's code; sizes of what is built; the builder's memory.

Every build is signed, as `make image` does it. The first build of the run fills the store with whatever it lacks and is
not measured.
"""

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench, change_server, document, layers_by_role, write_model
from benchmarks.figures import Figure, median
from benchmarks.measuring import Run, repeat, walls
from edgebuild.oci.layer import Role
from edgebuild.oci.layout import read_layout

AGAIN_LIMIT_S = 3.0
CHANGED_LIMIT_S = 4.0
SOFTWARE_LIMIT_BYTES = 32_000_000
MEMORY_LIMIT_BYTES = 200_000_000
PROFILES = ("pi4", "x86")
# `make image` builds for this one.
_MAIN_PROFILE = "jetson"
_MAY_CHANGE = frozenset({"server", "config"})
_LARGE_MODEL_BYTES = 1 << 30


def run(bench: Bench) -> Iterator[Figure]:
    """Measure every kind of build that needs no compiler."""
    signing = _make_key(bench)
    both = tuple(option for profile in PROFILES for option in ("--profile", profile))
    first = document(bench.image(*both, "--model", bench.model, "--output", "sizes", *signing))
    yield from _sizes(bench, first)
    yield from _again(bench, signing)
    yield from _changed(bench, signing)
    yield from _memory(bench, both, signing)


def _make_key(bench: Bench) -> tuple[str | Path, ...]:
    password = bench.folder / "password"
    password.write_text("of a benchmark\n", "utf-8")
    bench.edgebuild("keys", "generate", "--output", "keys", "--password-file", password)
    return ("--sign", bench.folder / "keys/cosign.key", "--password-file", password)


def _sizes(bench: Bench, built: Any) -> Iterator[Figure]:
    for image in built["images"]:
        yield Figure(
            name=f"{image['profile']}: all layers but the model's",
            unit="B",
            ours=image["software_bytes"],
            limit=SOFTWARE_LIMIT_BYTES,
        )
        yield Figure(
            name=f"{image['profile']}: the same, unpacked",
            unit="B",
            ours=_unpacked_bytes(bench.folder / "sizes", image["profile"]),
        )
        for role, layer in layers_by_role(image).items():
            yield Figure(
                name=f"{image['profile']}: layer {role}",
                unit="B",
                ours=layer["size_bytes"],
                note="uncompressed" if role == "model" else "gzip",
            )


def _unpacked_bytes(layout: Path, profile: str) -> int:
    """Add up the files of an image's layers, the model's left out."""
    image = next(image for image in read_layout(layout).index().images if image.profile == profile)
    total = 0
    for layer in image.layers:
        if layer.role is not Role.MODEL:
            raw = gzip.decompress(b"".join(layer.blob.chunks()))
            with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
                total += sum(member.size for member in archive if member.isreg())
    return total


def _again(bench: Bench, signing: tuple[str | Path, ...]) -> Iterator[Figure]:
    arguments = ("--profile", _MAIN_PROFILE, "--model", bench.model, "--output", "again", *signing)
    rounds = bench.rounds(5)
    quick = repeat(rounds, lambda: bench.image(*arguments, "--no-test"))
    yield Figure(
        name="image again, without the smoke test",
        unit="s",
        ours=median(walls(quick)),
        limit=AGAIN_LIMIT_S,
        samples=walls(quick),
        note=f"median of {rounds}; {median([run.cpu_s for run in quick]):.2f} s of processors",
    )
    tested = repeat(bench.rounds(2), lambda: bench.image(*arguments))
    yield Figure(
        name="image again, with the smoke test", unit="s", ours=median(walls(tested)), samples=walls(tested)
    )


def _changed(bench: Bench, signing: tuple[str | Path, ...]) -> Iterator[Figure]:
    checkout = bench.copy_checkout()
    copy = bench.of_checkout(checkout)
    arguments = (
        "--profile",
        _MAIN_PROFILE,
        "--model",
        bench.model,
        "--output",
        "changed",
        *signing,
        "--no-test",
    )
    runs = [copy.image(*arguments)]
    rounds = bench.rounds(5)
    for number in range(rounds):
        change_server(checkout, f"time {number}")
        runs.append(copy.image(*arguments))
        _check_layers(runs[-2], runs[-1])
    samples = walls(runs[1:])
    yield Figure(
        name="image after a change to the server's code",
        unit="s",
        ours=median(samples),
        limit=CHANGED_LIMIT_S,
        samples=samples,
        note=f"median of {rounds}; no other layer than the server's and config's changed",
    )


def _check_layers(before: Run, after: Run) -> None:
    old, new = (layers_by_role(document(run)["images"][0]) for run in (before, after))
    changed = {role for role, layer in new.items() if old[role]["digest"] != layer["digest"]}
    if "server" not in changed or changed - _MAY_CHANGE:
        raise SystemExit(
            f"after a change to the server, other layers changed than its own: {sorted(changed)}"
        )


def _memory(bench: Bench, both: tuple[str, ...], signing: tuple[str | Path, ...]) -> Iterator[Figure]:
    large = write_model(bench.folder / "large.gguf", bench.size(_LARGE_MODEL_BYTES))
    small = (*both, "--model", bench.model)
    kinds: dict[str, tuple[str | Path, ...]] = {
        "image again": (*small, *signing, "--output", "again", "--no-test"),
        "image with the smoke test (its emulator left out)": (*small, *signing, "--output", "again"),
        f"image of a new model of {large.stat().st_size / 1e6:.0f} MB": (
            *both, "--model", large, *signing, "--output", "large", "--no-test",
        ),
    }  # fmt: skip
    for name, arguments in kinds.items():
        measured = bench.image(*arguments, watch=True)
        yield Figure(
            name=f"memory: {name}",
            unit="B",
            ours=measured.peak_bytes,
            limit=MEMORY_LIMIT_BYTES,
            note=f"at the peak: {measured.at_peak}",
        )
    large.unlink()
    checked = bench.edgebuild("check", "sizes", watch=True)
    yield Figure(
        name="memory: check of a layout", unit="B", ours=checked.peak_bytes, limit=MEMORY_LIMIT_BYTES
    )

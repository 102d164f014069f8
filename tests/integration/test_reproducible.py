"""The same inputs give the same index digest: other stores, folders, masks, locales, time zones, moments, processor counts."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.bench import Bench, Warm, make_bench
from tests.support.mirror import running_mirror
from tests.support.peers.tool import Completed, run

# Whatever compiles stays; the rest is made anew from the downloads.
KEPT_ARTIFACTS = frozenset({"llama-cpp", "compiler", "qemu"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What must not matter.

    Attributes:
        folder: Name of the working directory, below which store, lock and layout lie.
        mask: File mode creation mask, in octal.
        variables: Environment.
        processors: The processors that the build may use, as taskset takes them.
    """

    folder: str
    mask: str
    variables: Mapping[str, str]
    processors: str


PLAIN = Surroundings(folder="a", mask="022", variables={"LANG": "C.UTF-8", "TZ": "UTC"}, processors="0")
ODD = Surroundings(
    folder="a much longer name – with spaces/und Ümläut/b",
    mask="077",
    variables={"LANG": "C", "LC_ALL": "C", "TZ": "Pacific/Kiritimati", "COLUMNS": "40", "USER": "somebody", "HOME": "/nonexistent"},
    processors=f"0-{(os.cpu_count() or 1) - 1}",
)  # fmt: skip


def build(bench: Bench, around: Surroundings, *more: str | Path, timeout_s: float = 600) -> Completed:
    prefix = ("sh", "-c", f'umask {around.mask}; exec taskset -c {around.processors} "$@"', "sh")
    return run(
        [*prefix, *bench.command.program, *bench.argv(*more)],
        env={**bench.command.variables, **around.variables},
        cwd=bench.command.folder,
        timeout_s=timeout_s,
    )


def make_place(warm: Warm, tmp_path: Path, around: Surroundings) -> Bench:
    folder = tmp_path / around.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    return make_bench(warm, folder)


def contents(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs/sha256").iterdir()}


def artifact_names(bench: Bench) -> set[str]:
    """Name the artifacts that a store holds."""
    found = (bench.store / "v1/artifact").glob("*/artifact.json")
    return {json.loads(path.read_bytes())["artifact"] for path in found}


def assert_same(first: Bench, second: Bench) -> None:
    """Compare blobs before digests, so that a failure says which one differs."""
    one, two = contents(first.layout), contents(second.layout)
    assert sorted(set(one) - set(two)) == []
    assert sorted(set(two) - set(one)) == []
    assert first.digest() == second.digest()
    assert (first.layout / "index.json").read_bytes() == (second.layout / "index.json").read_bytes()


@pytest.mark.slow
def test_all_but_the_compiled_is_made_twice(warm: Warm, tmp_path: Path) -> None:
    """Root file system, dependencies, server, quantised model, layers, image: from the same downloads, in two places."""
    benches = []
    for around in (PLAIN, ODD):
        bench = make_place(warm, tmp_path, around)
        for kind in ("layer", "model"):
            shutil.rmtree(bench.store / "v1" / kind)
        bench.forget_artifacts(KEPT_ARTIFACTS)
        assert artifact_names(bench) <= set(KEPT_ARTIFACTS)
        build(bench, around)
        assert artifact_names(bench) >= {"rootfs", "python-deps", "server", "toolchain"}
        bench.assert_sound()
        benches.append(bench)
    assert_same(*benches)


def test_a_second_build_changes_no_file(bench: Bench) -> None:
    bench.build()
    before = {
        path: path.stat().st_mtime_ns
        for path in bench.layout.rglob("*")
        if path.is_file() and path.parent.name == "sha256"
    }
    bench.build()
    after = {
        path: path.stat().st_mtime_ns
        for path in bench.layout.rglob("*")
        if path.is_file() and path.parent.name == "sha256"
    }
    assert before == after


@pytest.mark.slow
def test_everything_is_made_anew(warm: Warm, built_store: Path, tmp_path: Path) -> None:
    """From an empty store, compiling for both architectures included; only the lock and the bytes of its files are the same.

    What it is compared with was compiled for the tests' own store: in another folder, at another time, in plain surroundings.
    """
    options = ("--profile", "x86", "--quantization", "F16")
    before = make_place(warm, tmp_path, PLAIN)
    build(before, PLAIN, *options)
    anew = make_place(warm, tmp_path, ODD)
    shutil.rmtree(anew.store)
    with running_mirror(warm.lock, built_store) as mirror:
        around = replace(ODD, variables={**ODD.variables, **mirror.environment})
        build(anew, around, *options, *mirror.options, timeout_s=3600)
    assert artifact_names(anew) >= {"llama-cpp", "compiler", "toolchain", "rootfs", "python-deps", "server"}
    anew.assert_sound()
    assert_same(before, anew)

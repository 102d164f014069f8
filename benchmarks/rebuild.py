"""Another model, or one line of the server changed: build and push, beside `docker buildx build` and `docker push`.

700 MB of model; both sides push to one registry on this machine. Ours by way of a layout, and straight to the registry
without one. No smoke test and no signature on our side, since the other side has neither.
"""

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench, change_server, write_model
from benchmarks.figures import Figure, Peer, median
from benchmarks.plain import Plain, plain_way
from tests.support.peers.registry import Registry, running_registry

_MODEL_BYTES = 700_000_000
_PROFILE = "x86"
_LAYOUT, _STRAIGHT = "image --push", "image --push --no-layout"
_PLAIN = "buildx build, docker push"
_STEPS = ("first", "another model", "one line of the server", "nothing changed")

Samples = dict[tuple[str, str], list[float]]


def run(bench: Bench) -> Iterator[Figure]:
    """Time the three ways in turn, step by step."""
    models = [
        write_model(bench.folder / f"model-{number}.gguf", bench.size(_MODEL_BYTES))
        for number in range(1 + bench.rounds(2))
    ]
    samples: Samples = defaultdict(list)
    with running_registry(bench.folder / "registry") as registry:
        ours = _Ours(bench, registry)
        samples["first", _LAYOUT].append(ours.build_and_push(_LAYOUT, models[0]))
        samples["first", _STRAIGHT].append(ours.build_and_push(_STRAIGHT, models[0]))
        context = bench.folder / "context"
        with plain_way(
            context, layout=bench.folder / "layout", profile=_PROFILE, registry=registry, model=models[0]
        ) as plain:
            _measure(samples, ours, plain, registry.reference("plain", "1"), models, bench.rounds(3))
    for step in _STEPS:
        theirs = median(samples[step, _PLAIN])
        for way in (_LAYOUT, _STRAIGHT):
            yield Figure(
                name=f"{step}: {way}",
                unit="s",
                ours=median(samples[step, way]),
                peers=(Peer(name=_PLAIN, value=theirs),),
                samples=tuple(samples[step, way]),
                note=f"median of {len(samples[step, way])}; model of {models[0].stat().st_size / 1e6:.0f} MB",
            )


def _measure(
    samples: Samples, ours: "_Ours", plain: Plain, name: str, models: list[Path], rounds: int
) -> None:
    def theirs(step: str) -> None:
        samples[step, _PLAIN].append(plain.build(name) + plain.push(name))

    def both(step: str, model: Path) -> None:
        for way in (_LAYOUT, _STRAIGHT):
            samples[step, way].append(ours.build_and_push(way, model))

    theirs("first")
    for model in models[1:]:
        both("another model", model)
        shutil.copyfile(model, plain.model)
        theirs("another model")
    for number in range(rounds):
        change_server(ours.checkout, f"time {number}")
        samples["one line of the server", _LAYOUT].append(ours.build_and_push(_LAYOUT, models[-1]))
        change_server(ours.checkout, f"time {number}, straight")
        samples["one line of the server", _STRAIGHT].append(ours.build_and_push(_STRAIGHT, models[-1]))
        plain.change_server(f"time {number}")
        theirs("one line of the server")
    for _ in range(rounds):
        both("nothing changed", models[-1])
        theirs("nothing changed")


def _copy_of(model: Path) -> Path:
    copy = model.with_name(f"copy-of-{model.name}")
    if not copy.exists():
        shutil.copyfile(model, copy)
    return copy


class _Ours:
    """Our ways, with a copy of the checkout whose server can be changed."""

    def __init__(self, bench: Bench, registry: Registry) -> None:
        self.checkout = bench.copy_checkout()
        self._bench = bench.of_checkout(self.checkout)
        self._registry = registry
        # Everything but the model is in the store before the first step, as the base image is on the other side.
        small = write_model(bench.folder / "small.gguf", 1 << 20)
        self._bench.image("--profile", _PROFILE, "--model", small, "--output", "small", "--no-test")

    def build_and_push(self, way: str, model: Path) -> float:
        """Build, push and return the seconds of both."""
        place = ("--output", "layout") if way == _LAYOUT else ("--no-layout",)
        repository = "layout" if way == _LAYOUT else "straight"
        if way == _STRAIGHT:
            # A file of its own: the digest that the other way found is not known of it.
            model = _copy_of(model)
        done = self._bench.image(
            "--profile", _PROFILE, "--model", model, "--no-test",
            *place, "--push", "--tag", self._registry.reference(repository, "1"),
        )  # fmt: skip
        return done.wall_s

"""The server in the image, beside llama.cpp's own, llama-cpp-python's, and a bare loop over the image's library.

The image is built with a model of random weights, unpacked, and its entrypoint started in it. All contenders stand side
by side and take turns; none works while another is asked. They are started anew several times, each time another first:
of one server started several times over on a virtual machine, the first was a tenth slower than the last.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Peer, median
from benchmarks.measuring import status_bytes
from benchmarks.server.answers import Asked, ask, prompt_tokens
from benchmarks.server.bare import BARE_LOOP, Loop, bare_loop
from benchmarks.server.peers import (
    LLAMA_CPP_PYTHON,
    LLAMA_SERVER,
    llama_cpp_python,
    llama_server,
    make_environment,
)
from tests.support.built import engine_source
from tests.support.resident import resident_parts
from tests.support.soak import CLIENTS, GROWTH, REQUESTS, soak, under_way
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.unpacked import Running, Unpacked, running_image, unpack_image

PROFILE = "x86"
MEMORY_LIMIT_BYTES = 60_000_000
READY_LIMIT_S = 1.5
_CONTEXT_TOKENS, _SLOTS, _THREADS = 2048, 4, 2
_ONE = Asked(streams=1, prompt_tokens=32, output_tokens=192)
_FOUR = Asked(streams=_SLOTS, prompt_tokens=32, output_tokens=96)
_FIRST = Asked(streams=1, prompt_tokens=400, output_tokens=2)
_OURS = "edgeserve"
_SPEED_STARTS, _ROUNDS, _STARTS = 5, 3, 5
# The threads of a server look for more work for a while after its last token.
_PAUSE_S = 0.5

Samples = dict[tuple[Asked, str], list[float]]
Contender = Running | Loop


def run(bench: Bench) -> Iterator[Figure]:
    """Measure speed with a model of random weights, and the rest with the demo model."""
    yield from _speed(bench)
    demo = _make_image(bench, bench.model, "demo")
    yield from _start(bench, demo)
    yield _soak(bench, demo)


def _speed(bench: Bench) -> Iterator[Figure]:
    model = write_tiny_gguf(
        bench.folder / "random.gguf",
        dim=768,
        ff=1536,
        layers=24,
        vocabulary_tokens=32000,
        context_tokens=2048,
    )
    image = _make_image(bench, model, "random")
    model.unlink()
    settings = {"EDGE_SLOTS": _SLOTS, "EDGE_THREADS": _THREADS, "EDGE_CONTEXT_TOKENS": _CONTEXT_TOKENS}
    same = {"context_tokens": _CONTEXT_TOKENS, "threads": _THREADS}
    python = make_environment(
        bench.folder / "llama-cpp-python-environment", engine_source(bench.cache, bench.lock)
    )
    contenders: tuple[Callable[[], AbstractContextManager[Contender]], ...] = (
        partial(running_image, image, settings),
        partial(llama_server, bench.folder, image.model_file, slots=_SLOTS, **same),
        partial(llama_cpp_python, bench.folder, image, python, **same),
        partial(bare_loop, image, **same),
    )
    samples: Samples = defaultdict(list)
    for number in range(bench.rounds(_SPEED_STARTS)):
        first = number % len(contenders)
        with ExitStack() as stack:
            started = [stack.enter_context(start()) for start in contenders[first:] + contenders[:first]]
            _compare_prompts(started)
            _take_turns(started, bench.rounds(_ROUNDS), samples)
    yield from _speed_figures(samples)


def _make_image(bench: Bench, model: str | Path, name: str) -> Unpacked:
    """Build an image with a model, as a user does, and unpack it."""
    layout = bench.folder / f"{name}-layout"
    bench.image("--profile", PROFILE, "--model", model, "--no-test", "--output", layout)
    return unpack_image(layout, bench.folder / name)


def _compare_prompts(started: Sequence[Contender]) -> None:
    """Make sure that all servers compute as many tokens."""
    asked = replace(_ONE, output_tokens=8)
    lengths = {one.name: prompt_tokens(one, asked) for one in started if isinstance(one, Running)}
    if len(set(lengths.values())) != 1:
        raise SystemExit(f"the servers make different tokens of one prompt: {lengths}")


def _take_turns(started: Sequence[Contender], rounds: int, samples: Samples) -> None:
    """Ask everybody everything, in another order each round; the first round warms up."""
    for number in range(rounds + 1):
        for asked in (_ONE, _FOUR, _FIRST):
            for one in started if number % 2 else reversed(started):
                if _is_compared(one, asked):
                    time.sleep(_PAUSE_S)
                    value = _ask(one, asked, seed=number + 1)
                    if number:
                        samples[asked, one.name].append(value)


def _is_compared(one: Contender, asked: Asked) -> bool:
    if isinstance(one, Loop):
        return asked is _ONE
    return asked is _FOUR or one.name != LLAMA_CPP_PYTHON


def _ask(one: Contender, asked: Asked, *, seed: int) -> float:
    if isinstance(one, Loop):
        return one.ask(asked, seed=seed)
    took = ask(one, asked, seed=seed)
    return took.first_s if asked is _FIRST else took.tokens_per_s


def _speed_figures(samples: Samples) -> Iterator[Figure]:
    def peer(asked: Asked, name: str, **promise: float) -> Peer:
        theirs = samples[asked, name]
        ratios = tuple(mine / one for mine, one in zip(samples[asked, _OURS], theirs, strict=True))
        return Peer(name=name, value=median(theirs), ratios=ratios, **promise)

    def figure(name: str, unit: str, asked: Asked, *peers: Peer) -> Figure:
        mine = tuple(samples[asked, _OURS])
        note = f"median of {len(mine)}; {asked}"
        return Figure(name=name, unit=unit, ours=median(mine), peers=peers, samples=mine, note=note)

    yield figure(
        "tokens, one stream",
        "/s",
        _ONE,
        peer(_ONE, LLAMA_SERVER, ratio_at_least=0.95),
        peer(_ONE, BARE_LOOP, ratio_at_least=0.97),
    )
    yield figure(
        f"tokens, {_SLOTS} at once",
        "/s",
        _FOUR,
        peer(_FOUR, LLAMA_SERVER, ratio_at_least=0.90),
        peer(_FOUR, LLAMA_CPP_PYTHON, ratio_at_least=2.0),
    )
    yield figure(
        f"first token after a prompt of {_FIRST.prompt_tokens} words",
        "s",
        _FIRST,
        peer(_FIRST, LLAMA_SERVER, ratio_at_most=1.15),
    )


def _start(bench: Bench, demo: Unpacked) -> Iterator[Figure]:
    """Start the image with the demo model and its own settings, and look at its memory after an answer."""
    ready: list[float] = []
    resident: list[int] = []
    for _ in range(bench.rounds(_STARTS) + 1):
        with running_image(demo, {}) as server:
            soak(server.port, model=server.model, requests=1)
            ready.append(server.ready_s)
            resident.append(_own_bytes(server, demo))
    shape = {"context_tokens": 1024, "slots": 2, "threads": _THREADS}
    with llama_server(bench.folder, demo.model_file, **shape) as peer:
        prompt_tokens(peer, Asked(streams=1, prompt_tokens=8, output_tokens=1))
        theirs = (
            Peer(name=LLAMA_SERVER, value=peer.ready_s),
            Peer(name=LLAMA_SERVER, value=_own_bytes(peer, demo)),
        )
    yield Figure(
        name="ready after start, demo model",
        unit="s",
        ours=median(ready[1:]),
        limit=READY_LIMIT_S,
        peers=theirs[:1],
        samples=tuple(ready[1:]),
        note=f"median of {len(ready) - 1} after one to warm up",
    )
    yield Figure(
        name="resident memory without the model's pages, demo model",
        unit="B",
        ours=median(resident),
        limit=MEMORY_LIMIT_BYTES,
        peers=theirs[1:],
        samples=tuple(resident),
    )


def _own_bytes(server: Running, image: Unpacked) -> int:
    """Count resident memory, shared pages included, without those of the mapped model."""
    parts = resident_parts(server.pid, image.model_file.name)
    return sum(parts.values()) - parts["model file"]


def _soak(bench: Bench, demo: Unpacked) -> Figure:
    """Run the soak after one that warms up; a failure of any request ends the run."""
    requests = REQUESTS // 10 if bench.quick else REQUESTS
    settings = {"EDGE_SLOTS": _SLOTS, "EDGE_THREADS": _THREADS, "EDGE_QUEUE": CLIENTS}
    with running_image(demo, settings) as server:
        soak(server.port, model=server.model, requests=requests // 2, seed=1)
        before_bytes = status_bytes(server.pid, "VmRSS:")
        soak(server.port, model=server.model, requests=requests)
        after_bytes = status_bytes(server.pid, "VmRSS:")
        if count := under_way(server.port):
            raise SystemExit(f"after the soak {count:.0f} requests still hold a slot or wait for one")
    return Figure(
        name=f"memory after {requests} requests of {CLIENTS} clients",
        unit="x",
        ours=after_bytes / before_bytes,
        limit=1 + GROWTH,
        note=f"a tenth left midway, no other failed, all slots free; {after_bytes} B after, {before_bytes} B before",
    )

"""Runs a bench: the server's scheduler and engine without HTTP, in this process.

1. Check the machine and the model, and load it, as `serve` does.
2. One round that is not counted, so that weights are in memory and clocks are up.
3. The rounds: `concurrency` requests handed over together; each prompt is new, so that no prefix is reused.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from edgeserve import __version__, exits
from edgeserve.answers import End, Fault
from edgeserve.bench.energy import DeviceWatch
from edgeserve.bench.figures import Load, make_speeds
from edgeserve.bench.render import render_json, render_table
from edgeserve.deadlines import Deadlines
from edgeserve.engine.protocol import Engine, ModelFacts, Request, Sampling
from edgeserve.kernel import machine_memory, process_memory, processor_name
from edgeserve.loading import load_engine
from edgeserve.log import Log
from edgeserve.preflight.card import load_identities
from edgeserve.preflight.model import ModelCheckError
from edgeserve.preflight.run import run_preflight
from edgeserve.scheduler import Scheduler, State
from edgeserve.settings import Runtime

SCHEMA_VERSION: Final = 1
_CLIENT: Final = "bench"
_LAST_PASS_S: Final = 10.0
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


class BenchError(Exception):
    """The bench cannot run; carries the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def bench(runtime: Runtime, load: Load, *, as_json: bool) -> int:
    """Run a bench and print what it found on standard output.

    Returns:
        The exit code.
    """
    log = Log()
    try:
        document = _measure(runtime, load, log)
    except BenchError as error:
        problem, code = str(error), error.code
    else:
        sys.stdout.write(render_json(document) if as_json else render_table(document))
        return exits.OK
    log.error("bench", problem=problem, code=code)
    return code


def _measure(runtime: Runtime, load: Load, log: Log) -> dict[str, Any]:
    _check(runtime, load)
    code = run_preflight(runtime, log)
    if code != exits.OK:
        raise BenchError("this machine lacks what the lines above say", code)
    return asyncio.run(_run(runtime, load, log))


async def _run(runtime: Runtime, load: Load, log: Log) -> dict[str, Any]:
    return await _Bench(runtime, load, log).run()


def _check(runtime: Runtime, load: Load) -> None:
    """Refuse what makes no sense, and what the configured server could not do."""
    least = {"--prompt": (load.prompt_tokens, 1), "--output": (load.output_tokens, 2)}
    least |= {"--concurrency": (load.concurrency, 1), "--repetitions": (load.repetitions, 1)}
    for flag, (value, bound) in least.items():
        if value < bound:
            raise BenchError(f"{flag} must be at least {bound}, not {value}", exits.USAGE)
    if load.concurrency > runtime.engine.slots:
        raise BenchError(
            f"{load.concurrency} requests at the same time need as many slots, there are {runtime.engine.slots}; give --slots",
            exits.USAGE,
        )
    if load.prompt_tokens + load.output_tokens > runtime.engine.context_tokens:
        raise BenchError(
            f"{load.prompt_tokens} and {load.output_tokens} tokens do not fit {runtime.engine.context_tokens} of context; "
            "give --context-tokens, or a smaller --prompt or --output",
            exits.USAGE,
        )


class _Bench:
    """One bench; must be made in a running event loop."""

    def __init__(self, runtime: Runtime, load: Load, log: Log) -> None:
        self._runtime = runtime
        self._load = load
        self._log = log
        self._changed = asyncio.Event()
        self._failure_code = exits.ENGINE
        self._random = random.Random(load.prompt_tokens)  # noqa: S311 - the same prompts every time
        self._scheduler = Scheduler(
            self._make_engine, slots=runtime.engine.slots, queue=0, log=log, on_change=self._changed.set
        )

    def _make_engine(self) -> Engine:
        try:
            return load_engine(self._runtime, self._log)
        except ModelCheckError as error:
            self._failure_code = error.result.exit_code
            raise

    async def run(self) -> dict[str, Any]:
        """Load, measure, and describe."""
        started = time.monotonic()
        self._scheduler.start()
        try:
            await self._changed.wait()
            if self._scheduler.state is State.FAILED:
                raise BenchError(self._scheduler.failure, self._failure_code)
            if self._scheduler.facts.vector_length:
                raise BenchError("the model embeds texts; only generating is measured", exits.USAGE)
            load_s = time.monotonic() - started
            await self._round(0)
            rounds = []
            with DeviceWatch() as watch:
                for number in range(1, self._load.repetitions + 1):
                    rounds.append(await self._round(number))  # noqa: PERF401 - one after the other
            facts = self._scheduler.facts
            memory = process_memory()
        finally:
            await asyncio.to_thread(self._scheduler.close, _LAST_PASS_S)
        energy = watch.energy
        tokens = sum(end.output_tokens for one in rounds for end in one)
        figures = {"load_s": load_s} | asdict(make_speeds(rounds))
        figures |= {
            "peak_memory_bytes": None if memory is None else memory.peak_bytes,
            "anonymous_memory_bytes": None if memory is None else memory.anonymous_bytes,
            "energy": None
            if energy is None
            else {
                "source": energy.source,
                "joules": energy.joules,
                "watts": energy.joules / energy.seconds,
                "joules_per_token": energy.joules / tokens,
            },
            "celsius_before": watch.celsius_before,
            "celsius_highest": watch.celsius_highest,
        }
        return _describe(self._runtime, facts) | {"load": asdict(self._load), "figures": figures}

    async def _round(self, number: int) -> list[End]:
        names = [f"{number}.{stream}" for stream in range(self._load.concurrency)]
        prompts = [self._prompt() for _ in names]
        return list(await asyncio.gather(*(self._ask(*pair) for pair in zip(names, prompts, strict=True))))

    def _prompt(self) -> tuple[int, ...]:
        """Make a prompt of random words that no other starts like."""
        engine, count = self._scheduler.engine, self._load.prompt_tokens
        tokens: tuple[int, ...] = ()
        words = count // 2 + 1
        while len(tokens) < count:
            words *= 2
            text = " ".join("".join(self._random.choices(_LETTERS, k=5)) for _ in range(words))
            tokens = engine.tokenize(text, special=False)
        return tokens[:count]

    async def _ask(self, name: str, prompt: tuple[int, ...]) -> End:
        end = asyncio.get_running_loop().time() + self._runtime.server.limits.request_s
        request = Request(
            id=name,
            prompt=prompt,
            output_tokens=self._load.output_tokens,
            sampling=Sampling(seed=1),
            ignores_end=True,
        )
        answer = self._scheduler.generate(
            request, client=_CLIENT, stops=(), deadlines=Deadlines(first_token=end, end=end)
        )
        async with aclosing(answer):
            async for output in answer:
                if isinstance(output, End):
                    return output
                if isinstance(output, Fault):
                    raise BenchError(f"a request ended with {output.kind.value}", exits.ENGINE)
        raise BenchError("a request ended without an end", exits.ENGINE)


def _describe(runtime: Runtime, facts: ModelFacts) -> dict[str, Any]:
    """Say what was measured on what, so that figures are compared with their like."""
    memory = machine_memory()
    return {
        "schema_version": SCHEMA_VERSION,
        "edgeserve": __version__,
        "profile": runtime.profile,
        "is_traced": bool(runtime.server.trace),
        "model": {
            "name": runtime.model.name,
            "description": facts.description,
            "digests": _digests(runtime),
        },
        "engine": {
            "name": runtime.engine.name,
            "cpu_variant": facts.cpu_variant,
            "threads": facts.threads,
            "slots": facts.slots,
            "context_tokens": facts.context_tokens,
            "batch_tokens": runtime.engine.batch_tokens,
            "kv_type": runtime.engine.kv_type,
        },
        "machine": {
            "processor": processor_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": None if memory is None else memory[0],
        },
    }


def _digests(runtime: Runtime) -> list[str]:
    """Read the model's identity from its document; empty without one."""
    try:
        identities = load_identities(Path(runtime.model.card)) if runtime.model.card else {}
    except ValueError:
        return []
    return [identities[file].digest for file in runtime.model.files if file in identities]

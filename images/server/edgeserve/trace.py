"""A trace of the engine in Chrome's trace format: forward passes, and every request in the lane that it holds.

`TracedEngine` stands around an engine where a trace is wanted; where none is, nothing stands there and nothing is asked.
The file opens in https://ui.perfetto.dev, at any moment: it is complete JSON after every write.

Source: "Trace Event Format" (Chromium project), JSON object form; phases X (complete), C (counter), M (metadata).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

from edgeserve.engine.protocol import (
    EmbeddingRequest,
    Engine,
    EngineStats,
    Event,
    Finish,
    FinishReason,
    ModelFacts,
    Request,
    Vector,
)
from edgeserve.log import Log

_MOST_BYTES: Final = 64 << 20
_FLUSH_EVENTS: Final = 256
_HEAD: Final = b'{"displayTimeUnit":"ms","traceEvents":[\n'
_TAIL: Final = b"\n]}\n"
_PROCESS: Final = 1
_ENGINE_LANE: Final = 0


class Trace:
    """A trace file of at most `most_bytes`; one thread writes it, and whatever goes wrong with it only ends it."""

    def __init__(self, path: Path, log: Log, *, name: str, lanes: int, most_bytes: int = _MOST_BYTES) -> None:
        self._log = log
        self._most_bytes = most_bytes
        self._pending: list[bytes] = []
        self._file = path.open("wb", buffering=0)
        self._is_open = True
        self._end = len(_HEAD)
        self._started = time.perf_counter()
        self._add({"ph": "M", "name": "process_name", "args": {"name": f"edgeserve {name}"}})
        for lane in range(lanes + 1):
            title = f"slot {lane}" if lane else "forward passes"
            self._add({"ph": "M", "name": "thread_name", "tid": lane, "args": {"name": title}})
        self._flush()

    def span(self, name: str, *, lane: int, start: float, end: float, **facts: object) -> None:
        """Record something that took from `start` to `end`, in seconds of `time.perf_counter`."""
        self._add(
            {
                "ph": "X",
                "name": name,
                "tid": lane,
                "ts": self._micros(start),
                "dur": round((end - start) * 1e6, 1),
                "args": facts,
            }
        )

    def count(self, name: str, at: float, **values: int) -> None:
        """Record what some counters stood at."""
        self._add({"ph": "C", "name": name, "tid": _ENGINE_LANE, "ts": self._micros(at), "args": values})

    def close(self) -> None:
        """Write what is left; nothing is recorded any more."""
        if self._is_open:
            self._flush()
            self._is_open = False
            self._file.close()

    def _micros(self, moment: float) -> float:
        return round((moment - self._started) * 1e6, 1)

    def _add(self, event: dict[str, object]) -> None:
        if self._is_open:
            self._pending.append(json.dumps({"pid": _PROCESS} | event, separators=(",", ":")).encode())
            if len(self._pending) >= _FLUSH_EVENTS:
                self._flush()

    def _flush(self) -> None:
        """Put the pending events in the place of the file's end."""
        data = b",\n".join(self._pending)
        self._pending.clear()
        if not data:
            return
        # The first events, the metadata, have none before them, but the head.
        is_first = self._end == len(_HEAD)
        lead = b"" if is_first else b",\n"
        if self._end + len(lead) + len(data) + len(_TAIL) > self._most_bytes:
            self._give_up(f"full at {self._end} bytes")
            return
        try:
            self._file.seek(0 if is_first else self._end)
            self._file.write((_HEAD if is_first else lead) + data + _TAIL)
        except OSError as error:
            self._give_up(error.strerror or str(error))
            return
        self._end += len(lead) + len(data)

    def _give_up(self, problem: str) -> None:
        self._log.warning("trace", problem=problem, note="serving goes on without it")
        self._is_open = False
        self._file.close()


class _Open:
    """A request under way: its lane, when its present phase began, how many tokens it has."""

    __slots__ = ("lane", "output_tokens", "prompt_tokens", "since")

    def __init__(self, lane: int, prompt_tokens: int) -> None:
        self.lane = lane
        self.prompt_tokens = prompt_tokens
        self.output_tokens = 0
        self.since = time.perf_counter()


class TracedEngine:
    """An engine that writes a trace of what it does; see `Engine`."""

    def __init__(self, engine: Engine, trace: Trace) -> None:
        self._engine = engine
        self._trace = trace
        self._open: dict[str, _Open] = {}
        self._before = engine.stats()

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        return self._engine.facts

    def submit(self, request: Request | EmbeddingRequest) -> None:
        """Take a free slot; its lane is the first that nobody holds."""
        self._engine.submit(request)
        taken = {one.lane for one in self._open.values()}
        lane = next(lane for lane in range(1, len(taken) + 2) if lane not in taken)
        prompts = (request.prompt,) if isinstance(request, Request) else request.prompts
        tokens = sum(map(len, prompts))
        self._open[request.id] = _Open(lane, tokens)

    def step(self) -> tuple[Event, ...]:
        """Run one forward pass and record it."""
        start = time.perf_counter()
        events = self._engine.step()
        end = time.perf_counter()
        after, before = self._engine.stats(), self._before
        self._before = after
        if after.steps != before.steps:
            prompt_tokens = after.prompt_tokens - before.prompt_tokens
            output_tokens = after.output_tokens - before.output_tokens
            self._trace.span(
                "prompt" if prompt_tokens else "generate",
                lane=_ENGINE_LANE,
                start=start,
                end=end,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                requests=len(self._open),
            )
            self._trace.count("tokens in the cache", end, tokens=after.kv_tokens)
        for event in events:
            self._follow(event, end)
        return events

    def _follow(self, event: Event, now: float) -> None:
        one = self._open.get(event.request_id)
        if one is None:
            return
        if isinstance(event, Finish):
            self._finish(one, event, now)
            return
        if isinstance(event, Vector):
            return
        if not one.output_tokens:
            self._trace.span(
                "prompt",
                lane=one.lane,
                start=one.since,
                end=now,
                id=event.request_id,
                tokens=one.prompt_tokens,
            )
            one.since = now
        one.output_tokens += 1

    def _finish(self, one: _Open, finish: Finish, now: float) -> None:
        del self._open[finish.request_id]
        self._trace.span(
            "answer" if one.output_tokens else "prompt",
            lane=one.lane,
            start=one.since,
            end=now,
            id=finish.request_id,
            reason=finish.reason.value,
            prompt_tokens=finish.prompt_tokens,
            cached_tokens=finish.cached_tokens,
            output_tokens=finish.output_tokens,
        )

    def cancel(self, request_id: str) -> Finish | None:
        """Free the request's slot at once."""
        finish = self._engine.cancel(request_id)
        one = self._open.get(request_id)
        if finish is not None and one is not None:
            self._finish(one, finish, time.perf_counter())
        return finish

    def stats(self) -> EngineStats:
        """Count."""
        return self._engine.stats()

    def tokenize(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Turn text into tokens, from any thread."""
        return self._engine.tokenize(text, special=special)

    def close(self) -> None:
        """Give all memory back, and complete the file."""
        now = time.perf_counter()
        for request_id, one in tuple(self._open.items()):
            unfinished = Finish(
                request_id=request_id,
                reason=FinishReason.CANCELLED,
                prompt_tokens=one.prompt_tokens,
                cached_tokens=0,
                output_tokens=one.output_tokens,
            )
            self._finish(one, unfinished, now)
        self._trace.close()
        self._engine.close()

"""Reads the state of server and device at the moment of a scrape.

It runs in a thread of its own: everything read here is a value that its owner replaces as a whole.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeserve import __version__
from edgeserve.kernel import read_cpu_seconds, read_temperatures
from edgeserve.scheduler import NotServingError, Scheduler, State
from edgeserve.settings import Runtime

if TYPE_CHECKING:
    from edgeserve.audit.trail import Trail


class ServerState(Collector):
    """Queue, slots, cache and tokens; what the engine counts is there once it is loaded."""

    def __init__(self, runtime: Runtime, scheduler: Scheduler) -> None:
        self._runtime = runtime
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        """Yield what there is now."""
        runtime, scheduler = self._runtime, self._scheduler
        build = {"version": __version__, "python": platform.python_version(), "profile": runtime.profile}
        yield InfoMetricFamily("edgeserve_build", "The server and the profile that it was built for", build)
        yield _gauge("ready", "1 while requests are served", scheduler.state is State.READY)
        yield _gauge("queue_requests", "Requests waiting for a slot", scheduler.queued)
        yield _gauge("queue_places", "Requests that may wait", runtime.server.limits.queue)
        yield from self._engine()

    def _engine(self) -> Iterator[Metric]:
        stats = self._scheduler.stats
        try:
            facts = self._scheduler.facts
        except NotServingError:
            return
        if stats is None:
            return
        model = {
            "name": self._runtime.model.name,
            "description": facts.description,
            "cpu_variant": facts.cpu_variant,
        }
        yield InfoMetricFamily("edgeserve_model", "The model that is served", model)
        yield _gauge("slots", "Requests that are computed side by side", stats.slots)
        yield _gauge("slots_busy", "Slots that are computing", stats.busy_slots)
        yield _gauge("kv_tokens", "Tokens in the key/value cache, also of idle slots", stats.kv_tokens)
        yield _gauge("kv_places", "Tokens that the cache holds", facts.context_tokens * facts.slots)
        prompt = CounterMetricFamily(
            "edgeserve_prompt_tokens", "Tokens of prompts, computed or found in the cache", labels=("source",)
        )
        prompt.add_metric(("computed",), stats.prompt_tokens)
        prompt.add_metric(("cached",), stats.cached_tokens)
        yield prompt
        yield CounterMetricFamily("edgeserve_output_tokens", "Generated tokens", stats.output_tokens)
        yield CounterMetricFamily("edgeserve_steps", "Forward passes", stats.steps)


class DeviceState(Collector):
    """The device as its kernel tells it."""

    def collect(self) -> Iterator[Metric]:
        """Yield what there is now; no family where the kernel tells nothing."""
        cpu = read_cpu_seconds()
        if cpu is not None:
            seconds = CounterMetricFamily(
                "edgeserve_device_cpu_seconds", "Time of all processors of the device", labels=("mode",)
            )
            seconds.add_metric(("busy",), cpu.busy)
            seconds.add_metric(("idle",), cpu.idle)
            yield seconds
        temperature = GaugeMetricFamily(
            "edgeserve_device_temperature_celsius", "Sensors of the device", labels=("zone", "type")
        )
        for one in read_temperatures():
            temperature.add_metric((one.zone, one.kind), one.celsius)
        if temperature.samples:
            yield temperature


class AuditState(Collector):
    """Whether the audit log is sound, and where it was signed last: kept elsewhere, that shows when its end is cut off."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def collect(self) -> Iterator[Metric]:
        """Yield what there is now."""
        state = self._trail.state
        yield _gauge("audit_sound", "1 while everything that should be in the audit log is", state.is_sound)
        yield CounterMetricFamily(
            "edgeserve_audit_lost_lines", "Lines that could not be written in time", state.lost_lines
        )
        standing = state.standing
        if standing is None:
            return
        yield CounterMetricFamily(
            "edgeserve_audit_lines", "Lines of the log, since it began", standing.head.line
        )
        yield _gauge("audit_size_bytes", "Size of all files of the log", standing.size_bytes)
        yield _gauge("audit_checkpoint_line", "Number of the last signed line", standing.checkpoint.line)
        yield _gauge(
            "audit_checkpoint_digest",
            "The first 52 bits of that line's SHA-256: 13 hexadecimal digits, and a number that no reader rounds",
            int(standing.checkpoint.digest[:13], 16),
        )


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"edgeserve_{name}", documentation, float(value))

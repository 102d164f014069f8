"""The registry of one server, and its text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from edgeserve.metrics.requests import RequestMetrics
from edgeserve.metrics.state import AuditState, DeviceState, ServerState
from edgeserve.scheduler import Scheduler
from edgeserve.settings import Runtime

if TYPE_CHECKING:
    from edgeserve.audit.trail import Trail


class Metrics:
    """All that is measured; `requests` is an observer of requests."""

    # Prometheus, "Exposition formats", text-based format.
    content_type: Final = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(
        self, runtime: Runtime, scheduler: Scheduler, trail: Trail | None, *, quiet: frozenset[str]
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.requests = RequestMetrics(self.registry, quiet=quiet)
        self.registry.register(ServerState(runtime, scheduler))
        self.registry.register(DeviceState())
        if trail is not None:
            self.registry.register(AuditState(trail))
        ProcessCollector(registry=self.registry)
        # One at a time, and beside the event loop: sensors may take their time.
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    def render(self) -> bytes:
        """Write the text of a scrape; for the worker."""
        return generate_latest(self.registry)

    def close(self) -> None:
        """End the worker; a scrape in progress is not waited for."""
        self.worker.shutdown(wait=False, cancel_futures=True)

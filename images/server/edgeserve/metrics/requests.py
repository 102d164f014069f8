"""Counts requests and their times, as they end."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from edgeserve.answers import FaultKind
from edgeserve.records import Record

_LEFT: Final = frozenset({"client_gone", "slow_reader"})
# What a stream whose status was sent already can still end with.
_FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        FaultKind.ENGINE: "error",
        FaultKind.SHUTTING_DOWN: "unavailable",
        FaultKind.DEADLINE: "timeout",
        FaultKind.FIRST_TOKEN: "timeout",
        FaultKind.CROWDED_OUT: "limited",
        "internal": "error",
    }
)
_BY_STATUS: Final = {
    401: "denied",
    403: "denied",
    408: "timeout",
    429: "limited",
    503: "unavailable",
    504: "timeout",
}
_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKEN_SECONDS: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)


def outcome_of(record: Record) -> str:
    """Put what became of a request into one of few classes, so that no client can make series without end.

    Returns:
        "ok", "cancelled" (the client left), "timeout", "limited" (come back later), "denied", "invalid" (its own fault),
        "unavailable" (loading, stopping, no audit log) or "error" (ours).
    """
    if record.result in _LEFT:
        return "cancelled"
    if record.status < 400:
        return _FAULTS.get(record.result, "ok")
    return _BY_STATUS.get(record.status, "invalid" if record.status < 500 else "error")


def client_class(record: Record) -> str:
    """Say how the client was known, never who it was: "key", "cert" or "anonymous"."""
    return record.client.name.partition(":")[0]


class RequestMetrics:
    """See `edgeserve.records.Observer`."""

    def __init__(self, registry: CollectorRegistry, *, quiet: frozenset[str]) -> None:
        # The time at which a series began is one more series, and nothing of ours asks for it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._quiet = quiet
        self._requests = Counter(
            "edgeserve_requests",
            "Requests that ended, probes and scrapes left out",
            ("interface", "outcome", "client"),
            registry=registry,
        )
        self._seconds = _histogram(
            registry, "request_seconds", "From the first byte of a generating request to its last", _SECONDS
        )
        self._queued = _histogram(registry, "queue_seconds", "Waiting for a slot", _SECONDS)
        self._first = _histogram(
            registry, "time_to_first_token_seconds", "From handing over to the first token", _SECONDS
        )
        self._token = _histogram(
            registry, "time_per_token_seconds", "Mean time of each further token of an answer", _TOKEN_SECONDS
        )

    def on_request(self, record: Record) -> None:
        """See `Observer`."""
        if record.route in self._quiet and record.status < 400:
            return
        self._requests.labels(record.interface, outcome_of(record), client_class(record)).inc()
        end = record.end
        if end is None:
            return
        self._seconds.observe(record.seconds)
        self._queued.observe(end.queued_s)
        self._first.observe(end.first_token_s)
        if end.output_tokens > 1:
            self._token.observe((end.total_s - end.first_token_s) / (end.output_tokens - 1))


def _histogram(
    registry: CollectorRegistry, name: str, documentation: str, buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(f"edgeserve_{name}", documentation, buckets=buckets, registry=registry)

"""What is measured, without a server: what the kernel tells, what becomes of requests, and a text that others can read."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from edgeserve.answers import End, FaultKind
from edgeserve.clients import Client
from edgeserve.engine.protocol import FinishReason
from edgeserve.kernel import CpuSeconds, Temperature, read_cpu_seconds, read_temperatures
from edgeserve.metrics.requests import RequestMetrics, outcome_of
from edgeserve.records import Record

_END = End(
    reason=FinishReason.STOP,
    prompt_tokens=7,
    cached_tokens=3,
    output_tokens=5,
    queued_s=0.2,
    first_token_s=0.7,
    total_s=1.1,
)


def _record(
    status: int = 200, result: str = "stop", end: End | None = None, name: str = "anonymous"
) -> Record:
    return Record(
        interface="http",
        method="POST",
        route="/v1/completions",
        client=Client(name=name),
        status=status,
        result=result,
        end=end,
        seconds=1.2,
    )


def _samples(registry: CollectorRegistry) -> dict[str, float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        sample.name
        + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_temperatures_that_can_be_read(tmp_path: Path) -> None:
    for zone, kind, temp in (
        ("0", "cpu-thermal", "48312"),
        ("1", "off", None),
        ("2", "odd", "warm"),
        ("10", "gpu", "-500"),
    ):
        folder = tmp_path / f"thermal_zone{zone}"
        folder.mkdir()
        (folder / "type").write_text(kind + "\n")
        if temp is not None:
            (folder / "temp").write_text(temp + "\n")
    (tmp_path / "cooling_device0").mkdir()
    assert tuple(read_temperatures(tmp_path)) == (
        Temperature(zone="0", kind="cpu-thermal", celsius=48.312),
        Temperature(zone="10", kind="gpu", celsius=-0.5),
    )
    assert tuple(read_temperatures(tmp_path / "none")) == ()


def test_time_of_the_processors(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 4000 50 6 7 8 0 0\ncpu0 1 2 3\n")
    assert read_cpu_seconds(stat) == CpuSeconds(busy=1.71, idle=40.5)
    for text in ("", "cpu\n", "cpu 1 2 3\n", "cpu a b c d e f g h\n", "intr 1 2 3 4 5 6 7 8\n"):
        stat.write_text(text)
        assert read_cpu_seconds(stat) is None
    assert read_cpu_seconds(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("status", "result", "outcome"),
    [
        (200, "stop", "ok"),
        (200, "ok", "ok"),
        (200, "client_gone", "cancelled"),
        (0, "client_gone", "cancelled"),
        (200, "slow_reader", "cancelled"),
        (200, "deadline", "timeout"),
        (200, "engine", "error"),
        (200, "shutting_down", "unavailable"),
        (400, "invalid_value", "invalid"),
        (401, "invalid_api_key", "denied"),
        (404, "not_found", "invalid"),
        (408, "body_timeout", "timeout"),
        (429, "queue_full", "limited"),
        (500, "internal", "error"),
        (503, "loading", "unavailable"),
        (504, "deadline_exceeded", "timeout"),
    ],
)  # fmt: skip
def test_outcomes_are_few(status: int, result: str, outcome: str) -> None:
    assert outcome_of(_record(status, result)) == outcome


@pytest.mark.parametrize("kind", FaultKind)
def test_no_fault_of_a_stream_counts_as_ok(kind: FaultKind) -> None:
    assert outcome_of(_record(200, kind.value)) != "ok"


def test_requests_and_their_times() -> None:
    registry = CollectorRegistry()
    metrics = RequestMetrics(registry, quiet=frozenset({"/readyz"}))
    metrics.on_request(_record(end=_END, name="key:phone"))
    metrics.on_request(_record(end=_END, name="key:other"))
    metrics.on_request(_record(400, "invalid_value"))
    metrics.on_request(Record(interface="http", method="GET", route="/readyz", status=200))
    metrics.on_request(Record(interface="http", method="GET", route="/readyz", status=503, result="ok"))
    found = _samples(registry)
    assert found["edgeserve_requests_total client=key interface=http outcome=ok"] == 2
    assert found["edgeserve_requests_total client=anonymous interface=http outcome=invalid"] == 1
    assert found["edgeserve_requests_total client=anonymous interface=http outcome=unavailable"] == 1
    assert sum(value for name, value in found.items() if name.startswith("edgeserve_requests_total")) == 4
    assert found["edgeserve_time_to_first_token_seconds_sum"] == pytest.approx(1.4)
    assert found["edgeserve_time_to_first_token_seconds_bucket le=1.0"] == 2
    assert found["edgeserve_time_to_first_token_seconds_bucket le=0.5"] == 0
    assert found["edgeserve_time_per_token_seconds_sum"] == pytest.approx(0.2)
    assert found["edgeserve_queue_seconds_count"] == found["edgeserve_request_seconds_count"] == 2


def test_names_of_clients_never_become_series() -> None:
    registry = CollectorRegistry()
    metrics = RequestMetrics(registry, quiet=frozenset())
    before = len(_samples(registry))
    for number in range(500):
        metrics.on_request(_record(404, f"made-up-{number}", name=f"cert:CN=device-{number}"))
    assert len(_samples(registry)) == before + 1


def test_one_token_has_no_time_between_tokens() -> None:
    registry = CollectorRegistry()
    end = End(
        reason=FinishReason.LENGTH, prompt_tokens=1, cached_tokens=0, output_tokens=1, queued_s=0, first_token_s=1, total_s=1
    )  # fmt: skip
    RequestMetrics(registry, quiet=frozenset()).on_request(_record(end=end))
    assert _samples(registry)["edgeserve_time_per_token_seconds_count"] == 0

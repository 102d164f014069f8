"""A real Prometheus loads what docs/monitoring holds, reads a real server, and fires what it should."""

import contextlib
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.asking import COMPLETION, LOOP, ask
from tests.support.built import Edgebuild
from tests.support.fixtures import Peers
from tests.support.llama import ServerProcess, running_server
from tests.support.peers.prometheus import Prometheus, promtool, running_prometheus

_FOLDER = Path(__file__).parents[2] / "docs/monitoring"
_RULES = _FOLDER / "edgeserve-alerts.yml"
_LABELS = 'job="edgeserve",instance="device-1:8080"'
# Where the machine that runs the tests may have nothing to show.
_MAY_BE_EMPTY = ("edgeserve_device_temperature_celsius",)


def _wait(what: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _rules() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load(_RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def _series(name: str, values: str, labels: str = "") -> dict[str, str]:
    return {"series": f"{name}{{{_LABELS}{labels}}}", "values": values}


# Alert: series that make it fire by minute 16, and series that come close and must not.
_CASES: dict[str, tuple[list[dict[str, str]], list[dict[str, str]]]] = {
    "EdgeServerDown": ([_series("up", "0x20")], [_series("up", "0 1 0 1x20")]),
    "EdgeServerNotReady": (
        [_series("edgeserve_ready", "1 0x20")],
        [_series("edgeserve_ready", "1 0 1x18")],
    ),
    "EdgeQueueFull": (
        [_series("edgeserve_queue_requests", "8x20"), _series("edgeserve_queue_places", "8x20")],
        [_series("edgeserve_queue_requests", "0x20"), _series("edgeserve_queue_places", "0x20")],
    ),
    "EdgeAuditFailing": (
        [_series("edgeserve_audit_sound", "1 0x20")],
        [_series("edgeserve_audit_sound", "1x20")],
    ),
    "EdgeCpuHigh": (
        [
            _series("edgeserve_device_cpu_seconds_total", "0+196x20", ',mode="busy"'),
            _series("edgeserve_device_cpu_seconds_total", "0+44x20", ',mode="idle"'),
        ],
        [
            _series("edgeserve_device_cpu_seconds_total", "0+190x20", ',mode="busy"'),
            _series("edgeserve_device_cpu_seconds_total", "0+50x20", ',mode="idle"'),
        ],
    ),
    "EdgeTooHot": (
        [
            _series("edgeserve_device_temperature_celsius", "80.1x20", ',zone="0",type="cpu-thermal"'),
            _series("edgeserve_device_temperature_celsius", "40x20", ',zone="1",type="gpu"'),
        ],
        [_series("edgeserve_device_temperature_celsius", "80x20", ',zone="0",type="cpu-thermal"')],
    ),
    "EdgeRequestsFail": (
        [
            _series("edgeserve_requests_total", "0+6x20", ',interface="http",outcome="error",client="key"'),
            _series("edgeserve_requests_total", "0+94x20", ',interface="http",outcome="ok",client="key"'),
        ],
        [
            _series("edgeserve_requests_total", "0+4x20", ',interface="http",outcome="error",client="key"'),
            _series("edgeserve_requests_total", "0+96x20", ',interface="http",outcome="ok",client="key"'),
        ],
    ),
}


def test_every_alert_has_a_case() -> None:
    assert set(_CASES) == set(_rules())


@pytest.mark.parametrize("alert", _CASES)
def test_fires_when_it_should_and_only_then(alert: str, tmp_path: Path, peers: Peers) -> None:
    fires, stays = _CASES[alert]
    told = [{"exp_labels": {"severity": _rules()[alert]["labels"]["severity"], **_given(fires)}}]
    tests = [
        {"interval": "1m", "input_series": series, "alert_rule_test": [
            {"eval_time": "16m", "alertname": alert, "exp_alerts": _expected(alert, told) if expected else []}
        ]}
        for series, expected in ((fires, True), (stays, False))
    ]  # fmt: skip
    path = tmp_path / "cases.yml"
    path.write_text(json.dumps({"rule_files": [str(_RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = peers.get(lambda: promtool("test", "rules", path))
    assert done.returncode == 0, done.stdout + done.stderr


def _given(series: list[dict[str, str]]) -> dict[str, str]:
    del series
    return {"job": "edgeserve", "instance": "device-1:8080"}


def _expected(alert: str, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    values = {"EdgeCpuHigh": "82", "EdgeTooHot": "80"}
    texts = {
        name: text.replace("{{ $labels.instance }}", "device-1:8080")
        for name, text in _rules()[alert]["annotations"].items()
    }
    texts = {
        name: re.sub(r"\{\{ \$value[^}]*\}\}", values.get(alert, ""), text) for name, text in texts.items()
    }
    return [one | {"exp_annotations": texts} for one in told]


@pytest.fixture(scope="module")
def watched(
    peers: Peers, llama_host: Path, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, Prometheus, Path]]:
    """A server with an audit log, and a Prometheus that reads it every second, by the files as they are written for users."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "state").mkdir()
    settings = {
        "engine.context_tokens": 65536,
        "engine.slots": 1,
        "server.limits.output_tokens": 65000,
        "server.limits.queue": 1,
        "server.state_dir": str(folder / "state"),
        "server.audit.enabled": True,
        "server.audit.required": True,
        "server.audit.checkpoint_s": 1,
    }
    with ExitStack() as stack:
        server = stack.enter_context(running_server(llama_host, folder, scripted_model, settings))
        configuration = yaml.safe_load((_FOLDER / "prometheus.yml").read_text("utf-8"))
        (job,) = configuration["scrape_configs"]
        job["scrape_interval"] = "1s"
        job["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
        configuration["global"] = {"evaluation_interval": "1s"}
        (folder / "prometheus.yml").write_text(json.dumps(configuration))
        # The rules themselves, only less patient.
        rules = re.sub(r"for: \d+m", "for: 1s", _RULES.read_text("utf-8"))
        (folder / _RULES.name).write_text(rules)
        prometheus = peers.enter(stack, running_prometheus(folder / "prometheus", folder / "prometheus.yml"))
        yield server, prometheus, folder


def test_the_rules_are_loaded_and_evaluated(watched: tuple[ServerProcess, Prometheus, Path]) -> None:
    _, prometheus, _ = watched
    _wait(lambda: bool(prometheus.query("up == 1")))

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    assert {rule["name"] for rule in rules()} == set(_rules())
    _wait(lambda: all(rule["health"] == "ok" for rule in rules()))
    assert not prometheus.firing()


def _queries() -> list[tuple[str, str]]:
    dashboard = json.loads((_FOLDER / "edgeserve-dashboard.json").read_text("utf-8"))
    return [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


def test_every_panel_has_data(watched: tuple[ServerProcess, Prometheus, Path]) -> None:
    server, prometheus, _ = watched
    queries = {
        (
            title,
            expression.replace("$job", "edgeserve")
            .replace("$instance", ".*")
            .replace("$__rate_interval", "1m"),
        )
        for title, expression in _queries()
    }
    assert len(queries) >= 20
    missing: set[tuple[str, str]] = set()

    def has_all() -> bool:
        # Asked while it looks: a rate needs something that changes.
        assert ask(server, COMPLETION, {**LOOP, "max_tokens": 3}).status == 200
        missing.clear()
        missing.update(
            (title, expression)
            for title, expression in queries
            if not expression.startswith(_MAY_BE_EMPTY)
            and all(one["value"][1] == "NaN" for one in prometheus.query(expression))
        )
        return not missing

    try:
        _wait(has_all)
    except AssertionError as error:
        raise AssertionError(f"no data for {missing}") from error
    for _, expression in queries:
        prometheus.query(expression)


def test_every_metric_of_ours_is_described(watched: tuple[ServerProcess, Prometheus, Path]) -> None:
    _, prometheus, _ = watched
    _wait(lambda: bool(prometheus.query("edgeserve_ready")))
    metadata = prometheus.ask("metadata")
    ours = {name: entries[0] for name, entries in metadata.items() if name.startswith("edgeserve_")}
    assert len(ours) > 20
    assert all(
        entry["help"] and entry["type"] in {"gauge", "counter", "histogram"} for entry in ours.values()
    )


def _ask_in_vain(server: ServerProcess, document: dict[str, Any]) -> None:
    """Ask what never gets to its end, since the server is killed meanwhile."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        ask(server, COMPLETION, document)


def test_a_full_queue_and_a_broken_audit_log_fire(watched: tuple[ServerProcess, Prometheus, Path]) -> None:
    server, prometheus, folder = watched
    document = {**LOOP, "max_tokens": 60000}
    threads = [threading.Thread(target=_ask_in_vain, args=(server, document), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    _wait(lambda: "EdgeQueueFull" in prometheus.firing())
    assert prometheus.query("edgeserve_queue_requests")[0]["value"][1] == "1"
    (folder / "state/audit/audit-00000001.jsonl").unlink()
    _wait(lambda: prometheus.firing() >= {"EdgeAuditFailing", "EdgeServerNotReady"})
    server.process.kill()
    _wait(lambda: "EdgeServerDown" in prometheus.firing())
    for thread in threads:
        thread.join(30)


def test_the_files_reach_users(edgebuild: Edgebuild, peers: Peers) -> None:
    written = edgebuild.json("monitoring", "watch")["files"]
    names = ["edgeserve-alerts.yml", "edgeserve-dashboard.json", "prometheus.yml"]
    assert [Path(path).name for path in written] == names
    for name in names:
        assert (edgebuild.folder / "watch" / name).read_bytes() == (_FOLDER / name).read_bytes()
    edgebuild.run("monitoring", "watch")
    checked = peers.get(lambda: promtool("check", "config", edgebuild.folder / "watch/prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (edgebuild.folder / "watch/prometheus.yml").write_text("mine")
    refused = edgebuild.run("monitoring", "watch", check=False)
    assert refused.returncode == 2
    assert "prometheus.yml is there and holds something else" in refused.stderr
    assert (edgebuild.folder / "watch/prometheus.yml").read_text() == "mine"

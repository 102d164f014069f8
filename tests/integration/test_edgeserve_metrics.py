"""/metrics of a real server."""

import re
import threading
import time
from pathlib import Path

from edgeserve.access.keys import make_key
from tests.support.asking import COMPLETION, LOOP, ask
from tests.support.fixtures import Peers
from tests.support.llama import running_server
from tests.support.peers.prometheus import promtool
from tests.support.scraping import scrape, values


def test_counts_what_happens(llama_host: Path, scripted_model: Path, tmp_path: Path, peers: Peers) -> None:
    with running_server(llama_host, tmp_path, scripted_model) as server:
        before = values(server)
        assert before["edgeserve_ready"] == 1
        assert before["edgeserve_slots"] == 2
        assert before["edgeserve_kv_places"] == 2048
        assert ask(server, COMPLETION, {**LOOP, "max_tokens": 20}).status == 200
        assert ask(server, COMPLETION, {**LOOP, "max_tokens": 20}).status == 200
        assert ask(server, COMPLETION, {**LOOP, "max_tokens": -1}).status == 400
        assert ask(server, COMPLETION, {**LOOP, "model": "another"}).status == 404
        text = scrape(server).text
        after = values(server)
        resident = server.resident_bytes
    assert after['edgeserve_requests_total{client="anonymous",interface="http",outcome="ok"}'] == 2
    assert after['edgeserve_requests_total{client="anonymous",interface="http",outcome="invalid"}'] == 2
    assert after["edgeserve_output_tokens_total"] - before["edgeserve_output_tokens_total"] == 40
    assert (
        after['edgeserve_prompt_tokens_total{source="cached"}']
        > before['edgeserve_prompt_tokens_total{source="cached"}']
    )
    assert after["edgeserve_time_to_first_token_seconds_count"] == 2
    assert after["edgeserve_time_per_token_seconds_count"] == 2
    assert 0 < after["edgeserve_kv_tokens"] <= 2048
    assert after["edgeserve_slots_busy"] == after["edgeserve_queue_requests"] == 0
    assert (
        after["process_resident_memory_bytes"] == resident
        or abs(after["process_resident_memory_bytes"] / resident - 1) < 0.1
    )
    assert 'edgeserve_device_cpu_seconds_total{mode="busy"}' in after
    # The tool's own verdict on names, units and help texts.
    checked = peers.get(lambda: promtool("check", "metrics", stdin=text.encode()))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_page_names_every_metric(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/monitoring.md").read_text("utf-8")
    named = set(re.findall(r"`(edgeserve_[a-z_]+)`", page))
    settings = {
        "server.audit.enabled": True,
        "server.audit.required": True,
        "server.state_dir": str(tmp_path),
    }
    with running_server(llama_host, tmp_path, tiny_model, settings) as server:
        found = {name for name in scrape(server).families if name.startswith("edgeserve_")}
    assert found <= named
    # A device without sensors has no temperatures; requests without a series have none yet.
    assert named - found <= {"edgeserve_device_temperature_celsius", "edgeserve_requests_total"}


def test_while_the_server_is_busy(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    settings = {"engine.context_tokens": 65536, "server.limits.output_tokens": 65000, "engine.slots": 1}
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        document = {**LOOP, "max_tokens": 3000}
        threads = [threading.Thread(target=ask, args=(server, COMPLETION, document)) for _ in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while (found := values(server))["edgeserve_queue_requests"] < 2 or found["edgeserve_slots_busy"] < 1:
            assert time.monotonic() < deadline, found
        assert found["edgeserve_queue_places"] == 16
        for thread in threads:
            thread.join(60)
        assert values(server)["edgeserve_queue_requests"] == 0


def test_can_be_switched_off(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, tiny_model, {"server.metrics.enabled": False}) as server:
        assert scrape(server).status == 404
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "_rust.abi3.so" not in maps


def test_needs_a_key_where_keys_are_on(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    key, line = make_key("prometheus")
    (tmp_path / "keys").write_text(line + "\n")
    settings = {"server.access.keys_file": str(tmp_path / "keys")}
    with running_server(llama_host, tmp_path, tiny_model, settings) as server:
        assert scrape(server).status == 401
        found = scrape(server, Authorization=f"Bearer {key}")
        assert found.status == 200
        assert (
            found.samples['edgeserve_requests_total{client="anonymous",interface="http",outcome="denied"}']
            == 1
        )
    with running_server(llama_host, tmp_path, tiny_model, settings | {"server.metrics.open": True}) as server:
        assert scrape(server).status == 200

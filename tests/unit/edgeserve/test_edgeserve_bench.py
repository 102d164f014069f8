"""The arithmetic of a bench, and meters over folders that look like another machine's."""

import time
from pathlib import Path
from typing import Any

import pytest

from edgeserve.answers import End
from edgeserve.bench.energy import DeviceWatch
from edgeserve.bench.figures import make_speeds
from edgeserve.bench.render import render_json, render_table
from edgeserve.engine.protocol import FinishReason
from tests.support.kernel_tree import write_kernel_tree


def _end(*, first: float, total: float, prompt: int = 100, cached: int = 0, output: int = 11) -> End:
    return End(
        reason=FinishReason.LENGTH,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
        queued_s=0.0,
        first_token_s=first,
        total_s=total,
    )


def test_speeds_of_one_request_at_a_time() -> None:
    speeds = make_speeds(
        [[_end(first=1.0, total=2.0)], [_end(first=2.0, total=4.0)], [_end(first=0.5, total=1.0)]]
    )
    assert (speeds.first_token_s.median, speeds.first_token_s.least, speeds.first_token_s.greatest) == (
        1.0,
        0.5,
        2.0,
    )
    assert speeds.prompt_tokens_per_s.median == 100
    assert speeds.generation_tokens_per_s.median == 10
    assert speeds.total_tokens_per_s.median == 5.5


def test_speeds_of_requests_side_by_side() -> None:
    speeds = make_speeds([[_end(first=1.0, total=2.0, cached=20), _end(first=2.0, total=3.0)]])
    assert speeds.prompt_tokens_per_s.median == 90
    assert speeds.generation_tokens_per_s.greatest == 10
    assert speeds.total_tokens_per_s.median == pytest.approx(22 / 3)


def _watch(root: Path, seconds: float = 0.35) -> DeviceWatch:
    with DeviceWatch(root) as watch:
        time.sleep(seconds)
    return watch


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    watch = _watch(tmp_path, 0.0)
    assert (watch.energy, watch.celsius_before, watch.celsius_highest) == (None, None, None)


def test_a_jetson(tmp_path: Path) -> None:
    sensor = tmp_path / "sys/class/hwmon/hwmon3"
    files = {
        "name": "ina3221\n",
        "in1_label": "VDD_IN\n", "in1_input": "5000\n", "curr1_input": "2000\n",
        "in2_label": "VDD_CPU_GPU_CV\n", "in2_input": "5000\n", "curr2_input": "1000\n",
    }  # fmt: skip
    write_kernel_tree(sensor, files)
    write_kernel_tree(
        tmp_path / "sys/class/hwmon/hwmon0", {"name": "nvme\n", "curr1_input": "1\n", "in1_input": "1\n"}
    )
    energy = _watch(tmp_path).energy
    assert energy is not None
    assert energy.source == "board:VDD_IN"
    assert energy.joules / energy.seconds == pytest.approx(10, rel=0.1)


def test_a_board_of_several_rails(tmp_path: Path) -> None:
    sensor = tmp_path / "sys/class/hwmon/hwmon0"
    files = {
        "name": "ina226\n",
        "in1_label": "GPU\n", "in1_input": "5000\n", "curr1_input": "200\n",
        "in2_label": "CPU\n", "power2_input": "3000000\n", "curr2_input": "1\n",
        "in3_label": "OFF\n", "in3_input": "n/a\n", "curr3_input": "1\n",
    }  # fmt: skip
    write_kernel_tree(sensor, files)
    energy = _watch(tmp_path).energy
    assert energy is not None
    assert energy.source == "board:CPU,GPU,OFF"
    assert energy.joules / energy.seconds == pytest.approx(4, rel=0.1)


def test_counters_of_packages_that_wrap(tmp_path: Path) -> None:
    zones = tmp_path / "sys/class/powercap"
    files = {
        "intel-rapl:0/name": "package-0\n", "intel-rapl:0/energy_uj": "9000000\n",
        "intel-rapl:0/max_energy_range_uj": "10000000\n",
        "intel-rapl:0:0/name": "core\n", "intel-rapl:0:0/energy_uj": "5\n",
        "intel-rapl:1/name": "psys\n", "intel-rapl:1/energy_uj": "5\n",
    }  # fmt: skip
    write_kernel_tree(zones, files)
    with DeviceWatch(tmp_path) as watch:
        (zones / "intel-rapl:0/energy_uj").write_text("2000000\n")
    assert watch.energy is not None
    assert (watch.energy.source, watch.energy.joules) == ("rapl:package-0", 3.0)


def test_the_highest_temperature(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    write_kernel_tree(zone, {"type": "cpu\n", "temp": "40000\n"})
    with DeviceWatch(tmp_path) as watch:
        (zone / "temp").write_text("70000\n")
        time.sleep(0.3)
        (zone / "temp").write_text("50000\n")
    assert (watch.celsius_before, watch.celsius_highest) == (40.0, 70.0)


def _document(**figures: Any) -> dict[str, Any]:
    spread = {"median": 12.345678, "least": 1.0, "greatest": 20.0}
    names = ("first_token_s", "prompt_tokens_per_s", "generation_tokens_per_s", "total_tokens_per_s")
    return {
        "model": {"name": "m", "description": "llama 1B", "digests": []},
        "machine": {"processor": "Box"},
        "engine": {"name": "llama.cpp", "cpu_variant": "haswell", "threads": 4},
        "load": {"prompt_tokens": 8, "output_tokens": 4, "concurrency": 2, "repetitions": 3},
        "figures": dict.fromkeys(names, spread)
        | {"load_s": 0.5, "peak_memory_bytes": 2_000_000, "anonymous_memory_bytes": 1_000_000}
        | {"energy": None, "celsius_before": None, "celsius_highest": None}
        | figures,
    }


def test_a_table() -> None:
    table = render_table(_document())
    assert "m (llama 1B) on Box, llama.cpp haswell, 4 threads" in table
    assert "2 at a time, 8 + 4 tokens, 3 times" in table
    assert "12.35 tokens/s (1 to 20)" in table
    assert "1.235e+04 ms (1000 to 2e+04)" in table
    assert "2 MB, 1 MB of it not the model's file" in table
    assert table.count("this kernel does not tell") == 2
    energy = {"source": "rapl:package-0", "joules": 9.0, "watts": 15.0, "joules_per_token": 0.25}
    told = render_table(
        _document(energy=energy, celsius_before=40.0, celsius_highest=61.5, peak_memory_bytes=None)
    )
    assert "0.25 J/token, 15 W (rapl:package-0)" in told
    assert "62 °C, 40 °C before" in told
    assert "memory" not in told


def test_a_document_has_six_digits() -> None:
    assert '"median": 12.3457' in render_json(_document())

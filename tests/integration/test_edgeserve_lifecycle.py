"""How an edgeserve process starts, tells its health, fails, and stops."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.llama import (
    MODEL_NAME,
    ServerProcess,
    run_edgeserve,
    running_server,
    server_environment,
    write_runtime,
)

_ENDLESS = {"engine.context_tokens": 65536, "server.limits.output_tokens": 65000}


def _get(server: ServerProcess, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    document = json.loads(response.read())
    connection.close()
    return response.status, document


class _Stream:
    """A streamed completion, read in a thread."""

    def __init__(self, server: ServerProcess, prompt: str, max_tokens: int) -> None:
        self.text = b""
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = {
            "model": MODEL_NAME,
            "prompt": prompt,
            "temperature": 0,
            "stream": True,
            "max_tokens": max_tokens,
        }
        self._connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        self._response = self._connection.getresponse()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while part := self._response.read1(65536):
            self.text += part

    def finish(self) -> bytes:
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._connection.close()
        return self.text


def test_starts_answers_and_stops(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, tiny_model) as server:
        assert server.terminate() == 0
        log = server.log
    assert "access tls=off keys=off" in log
    assert "slots=2" in log
    assert "signal name=SIGTERM" in log
    assert "stopped code=0" in log


def test_needs_nothing_writable(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    nowhere = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent"}
    read_only = tmp_path / "work"
    read_only.mkdir()
    with running_server(llama_host, read_only, tiny_model, environment=nowhere) as server:
        files = set(read_only.iterdir())
        assert _get(server, "/readyz")[0] == 200
        opened = []
        for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the connection that just ended
                opened.append(str(link.readlink()))
        assert not [name for name in opened if name.startswith(str(tmp_path)) and name != str(tiny_model)]
        assert server.terminate() == 0
    assert set(read_only.iterdir()) == files


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_short_answers_finish(
    llama_host: Path, scripted_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with running_server(llama_host, tmp_path, scripted_model, _ENDLESS | {"server.drain_s": 30}) as server:
        stream = _Stream(server, "loop", 3000)
        server.process.send_signal(number)
        server.wait_for(f"signal name={number.name}")
        assert server.wait(40) == 0
        text = stream.finish()
        shown = "".join(re.findall(r'"text":"([^"]*)"', text.decode()))
        assert shown == "la li lo lu" * 750  # 3000 tokens
        assert b'"finish_reason":"length"' in text
        assert text.endswith(b"data: [DONE]\n\n")


def test_a_signal_cuts_long_answers_off(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, scripted_model, _ENDLESS | {"server.drain_s": 1}) as server:
        stream = _Stream(server, "loop", 60000)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("signal name=SIGTERM")
        with pytest.raises(ConnectionError):
            _get(server, "/livez")
        assert server.wait() == 0
        assert time.monotonic() - started < 10
        text = stream.finish()
        assert b'"code": "shutting_down"' in text
        assert text.endswith(b"data: [DONE]\n\n")


def test_a_second_signal_cuts_at_once(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, scripted_model, _ENDLESS | {"server.drain_s": 3000}) as server:
        stream = _Stream(server, "loop", 60000)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("signal name=SIGTERM")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert b'"code": "shutting_down"' in stream.finish()


def test_idle_connections_do_not_hold_up_the_end(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, tiny_model) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        _get(server, "/livez")
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 5
        for connection in idle:
            connection.close()


def test_while_the_model_loads(llama_host: Path, tmp_path: Path) -> None:
    model = tmp_path / "slow.gguf"
    os.mkfifo(model)  # opening it waits for a writer that never comes
    with running_server(llama_host, tmp_path, model, wait_ready=False) as server:
        assert _get(server, "/livez") == (200, {"status": "alive"})
        assert _get(server, "/readyz") == (503, {"status": "loading"})
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", "/v1/completions", "{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (503, "loading")
        connection.close()
        health = run_edgeserve(server.environment | {"EDGE_PORT": str(server.port)}, "health")
        assert health.returncode == 1
        assert health.stderr == f"unhealthy: 127.0.0.1:{server.port}: loading\n"
        assert server.terminate() == 0


def test_health(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, tiny_model) as server:
        environment = server.environment | {"EDGE_PORT": str(server.port)}
        healthy = run_edgeserve(environment, "health")
        assert (healthy.returncode, healthy.stdout) == (0, f"healthy: 127.0.0.1:{server.port}: ready\n")
        assert server.terminate() == 0
    unhealthy = run_edgeserve(environment, "health")
    assert unhealthy.returncode == 1
    assert unhealthy.stderr.count("\n") == 1
    lost = run_edgeserve(environment | {"EDGE_RUNTIME": "/nonexistent", "EDGE_PORT": "x"}, "health")
    assert lost.returncode == 1
    assert lost.stderr.startswith("unhealthy: configuration: ")


def test_health_imports_little() -> None:
    probe = (
        "import atexit, runpy, sys; sys.argv[1:] = ['health'];"
        "heavy = {'argparse', 'asyncio', 'dataclasses', 'http', 'logging', 'typing', 'uvicorn', 'ctypes'};"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))));"
        "runpy.run_module('edgeserve', run_name='__main__')"
    )
    environment = {
        "PYTHONPATH": str(Path("images/server").resolve()),
        "EDGE_HOST": "127.0.0.1",
        "EDGE_PORT": "1",
    }
    result = subprocess.run(
        [sys.executable, "-S", "-c", probe],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (1, "[]\n")


@pytest.mark.parametrize("content", [b"", b"GGUF\x03\x00\x00\x00", b"nonsense" * 1000])
def test_a_bad_model_has_its_own_exit_code(llama_host: Path, tmp_path: Path, content: bytes) -> None:
    model = tmp_path / "bad.gguf"
    model.write_bytes(content)
    with running_server(llama_host, tmp_path, model, wait_ready=False) as server:
        assert server.wait() == 4
        assert "engine-failed" in server.log
        assert "bad.gguf" in server.log


def test_no_llama_cpp_has_the_engines_exit_code(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with running_server(tmp_path / "empty", tmp_path, tiny_model, wait_ready=False) as server:
        assert server.wait() == 4
        assert "llama_cpp cannot be loaded" in server.log


def test_another_cpu_variant_than_expected_is_a_warning(
    llama_host: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with running_server(llama_host, tmp_path, tiny_model, {"engine.cpu_variant": "armv8.0_1"}) as server:
        assert "warning cpu-variant expected=armv8.0_1 loaded=" in server.log


def test_a_port_in_use_has_its_own_exit_code(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        overrides = {"server.port": port}
        with running_server(llama_host, tmp_path, tiny_model, overrides, wait_ready=False) as server:
            assert server.wait() == 5
            assert f"error listen host=127.0.0.1 port={port}" in server.log


def test_bad_configuration_has_its_own_exit_code(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    runtime = write_runtime(tmp_path, tiny_model, {"engine.slots": 0, "server.limit": {}, "model.name": ""})
    environment = server_environment(llama_host, runtime) | {"EDGE_TREADS": "4"}
    result = run_edgeserve(environment, "serve", "--port", "high")
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    for part in (
        "5 faults",
        "engine.slots: must be from 1 to 64, not 0",
        "server.limit: unknown key (did you mean limits?)",
        "model.name: must not be empty",
        "EDGE_TREADS: unknown environment variable (did you mean EDGE_THREADS?)",
        '--port (server.port): must be a whole number, not "high"',
    ):
        assert part in result.stderr
    assert run_edgeserve(environment, "serve", "--nonsense").returncode == 2
    assert run_edgeserve(environment, "sing").returncode == 2


def test_environment_and_flags_override_the_file(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    environment = server_environment(llama_host, write_runtime(tmp_path, tiny_model))
    environment |= {"EDGE_THREADS": "3", "EDGE_QUEUE": "5"}
    result = run_edgeserve(environment, "config", "--queue", "7")
    document = json.loads(result.stdout)
    assert (document["engine"]["threads"], document["server"]["limits"]["queue"]) == (3, 7)
    table = run_edgeserve(environment, "config", "--table")
    assert table.returncode == 0
    assert "| `server.limits.queue` | `EDGE_QUEUE` | `--queue` | `16` | 0 to 4096 |" in table.stdout


def test_context_beyond_the_training_is_a_warning(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, tiny_model, {"engine.context_tokens": 4096}) as server:
        assert "warning context tokens=4096 trained_tokens=2048" in server.log


def test_no_more_threads_than_cores(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    overrides = {"engine.threads": cores + 3, "engine.batch_threads": cores + 5}
    with running_server(llama_host, tmp_path, tiny_model, overrides) as server:
        server.wait_for(rf" warning threads wanted={cores + 3} cores={cores}")
        server.wait_for(rf" ready .* threads={cores} ")


def test_many_cancelled_requests_leave_no_memory(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    with running_server(llama_host, tmp_path, scripted_model, _ENDLESS | {"engine.context_tokens": 8192,
                        "server.limits.output_tokens": 8000}) as server:  # fmt: skip
        body = {"model": MODEL_NAME, "prompt": "loop", "temperature": 0, "stream": True, "max_tokens": 7000}
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"

        def cancel(count: int) -> None:
            for _ in range(count):
                with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                    connection.sendall(head.encode() + data)
                    connection.recv(256)

        cancel(50)
        before = server.resident_bytes
        cancel(300)
        assert server.resident_bytes < before * 1.05 + (1 << 20)
        assert _get(server, "/readyz")[0] == 200
        assert server.terminate() == 0

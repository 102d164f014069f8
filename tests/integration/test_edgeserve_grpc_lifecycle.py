"""gRPC over time: queue, cancel, deadlines, slow readers, health while it starts and stops, SIGTERM."""

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from edgebuild.grpc_health import ask_health
from tests.support.grpc_client import WAIT_S, Client, client, refusal
from tests.support.llama import GRPC, running_server, server_environment, write_runtime

LOOP: dict[str, Any] = {"prompt": "loop", "temperature": 0.0}
# What a server needs so that "loop" keeps its one slot busy for as long as a test looks at it.
ENDLESS: Mapping[str, Any] = {
    **GRPC,
    "engine.context_tokens": 65536,
    "server.limits.output_tokens": 65000,
    "engine.slots": 1,
}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def _begun(opened: Client, **fields: Any) -> Any:
    """Begin an endless answer and see its first text."""
    call = opened.generate(**LOOP, **fields)
    assert next(call).text
    return call


def _answer_soon(opened: Client) -> str:
    """Ask until there is room, which must be soon."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return opened.answer(prompt="go", temperature=0.0, max_tokens=2)[0]
        except grpc.RpcError as error:
            failed: Any = error
            if failed.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or time.monotonic() > deadline:
                raise


def test_a_full_queue_says_when_to_come_back(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = {**ENDLESS, "server.limits.queue": 1}
    with (
        running_server(llama_host, tmp_path, scripted_model, overrides) as server,
        client(server.grpc_target) as opened,
    ):
        running = _begun(opened)
        waiting = opened.generate(**LOOP)
        deadline = time.monotonic() + WAIT_S
        while True:
            status, _, metadata = refusal(lambda: list(opened.generate(prompt="go", max_tokens=1, timeout=1)))
            if status is not grpc.StatusCode.DEADLINE_EXCEEDED or time.monotonic() > deadline:
                break
        assert (status, metadata["edge-error-code"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue_full")
        assert int(metadata["grpc-retry-pushback-ms"]) >= 1000
        status, _, _ = refusal(lambda: opened.tokenize(prompt="a"))
        assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
        running.cancel()
        assert next(waiting).text
        waiting.cancel()


def test_cancel_frees_the_slot(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = {**ENDLESS, "server.limits.queue": 0}
    with (
        running_server(llama_host, tmp_path, scripted_model, overrides) as server,
        client(server.grpc_target) as opened,
    ):
        for _ in range(3):
            _begun(opened).cancel()
            assert _answer_soon(opened).startswith("Hello")
        assert server.log.count("outcome=client_gone") == 3


def test_a_vanished_client_frees_the_slot(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, scripted_model, ENDLESS) as server:
        with client(server.grpc_target) as opened:
            _begun(opened)
        server.wait_for("outcome=client_gone")
        with client(server.grpc_target) as opened:
            assert opened.answer(prompt="go", temperature=0.0)[0].startswith("Hello")


def test_the_clients_deadline_holds(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    with (
        running_server(llama_host, tmp_path, scripted_model, ENDLESS) as server,
        client(server.grpc_target) as opened,
    ):
        begin = time.monotonic()
        status, _, _ = refusal(lambda: list(opened.generate(**LOOP, timeout=0.5)))
        assert status is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begin < 5
        # The server's clock, or the client's that ran out first.
        server.wait_for("outcome=(deadline|deadline_exceeded|client_gone) ")
        assert opened.answer(prompt="go", temperature=0.0)[0].startswith("Hello")


def test_the_servers_deadline_holds(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = {**ENDLESS, "server.limits.request_s": 1}
    with (
        running_server(llama_host, tmp_path, scripted_model, overrides) as server,
        client(server.grpc_target) as opened,
    ):
        status, message, metadata = refusal(lambda: list(opened.generate(**LOOP)))
        assert (status, metadata["edge-error-code"]) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "deadline_exceeded",
        )
        assert metadata["grpc-retry-pushback-ms"] == "-1"
        assert "server" in message


def test_a_slow_reader_is_cut_off(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = {**ENDLESS, "server.limits.request_s": 2, "server.limits.queue": 0}
    with (
        running_server(llama_host, tmp_path, scripted_model, overrides) as server,
        client(server.grpc_target) as opened,
    ):
        call = opened.generate(prompt="flood", temperature=0.0)
        next(call)
        server.wait_for("status=504 outcome=slow_reader", 20)
        with client(server.grpc_target) as other:
            assert other.answer(prompt="go", temperature=0.0)[0].startswith("Hello")
        assert refusal(lambda: list(call))[0] is not grpc.StatusCode.OK


def test_health_while_the_model_loads(llama_host: Path, tmp_path: Path) -> None:
    model = tmp_path / "slow.gguf"
    os.mkfifo(model)  # opening it waits for a writer that never comes
    with (
        running_server(llama_host, tmp_path, model, GRPC, wait_ready=False) as server,
        client(server.grpc_target) as opened,
    ):
        assert next(opened.watch()) == NOT_SERVING
        assert ask_health(int(server.grpc_target.rpartition(":")[2]), timeout_s=WAIT_S) == NOT_SERVING
        status, _, metadata = refusal(lambda: list(opened.generate(prompt="a")))
        assert (status, metadata["edge-error-code"]) == (grpc.StatusCode.UNAVAILABLE, "loading")
        assert metadata["grpc-retry-pushback-ms"] == "1000"
        assert refusal(opened.model)[0] is grpc.StatusCode.UNAVAILABLE
        assert server.terminate() == 0


def test_a_signal_lets_short_answers_finish(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = {**ENDLESS, "server.drain_s": 30}
    with (
        running_server(llama_host, tmp_path, scripted_model, overrides) as server,
        client(server.grpc_target) as opened,
    ):
        watch = opened.watch()
        assert next(watch) == SERVING
        running = _begun(opened, max_tokens=4000)
        server.process.send_signal(signal.SIGTERM)
        assert next(watch) == NOT_SERVING
        assert refusal(lambda: list(opened.generate(**LOOP, timeout=5)))[0] is grpc.StatusCode.UNAVAILABLE
        assert list(running)[-1].usage.output_tokens == 4000
        begin = time.monotonic()
        assert server.wait(40) == 0
        # The watcher does not hold up the end.
        assert time.monotonic() - begin < 10
        assert refusal(lambda: next(watch))[0] in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_a_signal_cuts_long_answers_off(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = {**ENDLESS, "server.drain_s": 1}
    with (
        running_server(llama_host, tmp_path, scripted_model, overrides) as server,
        client(server.grpc_target) as opened,
    ):
        running = _begun(opened)
        server.process.send_signal(signal.SIGTERM)
        status, _, metadata = refusal(lambda: list(running))
        assert (status, metadata["edge-error-code"]) == (grpc.StatusCode.UNAVAILABLE, "shutting_down")
        assert server.wait() == 0


def test_idle_channels_and_watchers_do_not_hold_up_the_end(
    llama_host: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with (
        running_server(llama_host, tmp_path, tiny_model, GRPC) as server,
        client(server.grpc_target) as opened,
    ):
        watches = [opened.watch() for _ in range(3)]
        assert [next(watch) for watch in watches] == [SERVING] * 3
        silent = socket.create_connection(("127.0.0.1", int(server.grpc_target.rpartition(":")[2])))
        begin = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - begin < 5
        silent.close()


def test_more_calls_than_it_takes_at_once(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Watchers do not push out those who generate for longer than they are there, and memory stays."""
    with running_server(llama_host, tmp_path, tiny_model, GRPC) as server:
        opened = [
            grpc.insecure_channel(server.grpc_target, options=[("edge.number", number)])
            for number in range(40)
        ]
        watches = [Client(channel).watch() for channel in opened for _ in range(20)]
        told = []
        for watch in watches:
            try:
                told.append(next(watch))
            except grpc.RpcError as error:
                failed: Any = error
                assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(told) == 32
        for channel in opened:
            channel.close()
        with client(server.grpc_target) as after:
            assert _answer_soon(after)


def test_many_at_once_over_both_interfaces(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = {**GRPC, "server.limits.queue": 64}
    with (
        running_server(llama_host, tmp_path, scripted_model, overrides) as server,
        client(server.grpc_target) as opened,
    ):
        texts: list[str] = []

        def ask(number: int) -> None:
            if number % 10 == 9:
                _begun(opened).cancel()
            else:
                texts.append(opened.answer(prompt="go", temperature=0.0)[0])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert texts == ["Hello world€ END of story"] * 36
        assert server.terminate() == 0
        assert "level=error" not in server.log
        assert " error " not in server.log


def test_off_unless_asked_for(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, tiny_model) as server:
        assert "cygrpc" not in Path(f"/proc/{server.process.pid}/maps").read_text()
        assert server.terminate() == 0
        assert " grpc " not in server.log


def test_an_image_without_the_layer_says_so(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    missing = tmp_path / "without" / "grpc"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'grpc'\")")
    path = server_environment(llama_host, write_runtime(tmp_path, tiny_model))["PYTHONPATH"]
    environment = {"PYTHONPATH": f"{missing.parent}:{path}"}
    with running_server(
        llama_host, tmp_path, tiny_model, GRPC, environment=environment, wait_ready=False
    ) as server:
        assert server.wait() == 3
        assert "server.grpc: true" in server.log


def test_a_port_in_use_has_its_own_exit_code(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        overrides = {"server.grpc": {"enabled": True, "port": port}}
        with running_server(llama_host, tmp_path, tiny_model, overrides, wait_ready=False) as server:
            assert server.wait() == 5
            assert f"error listen host=127.0.0.1 port={port}" in server.log

"""The audit log of a real server: what it holds, what it survives, and what is not served without it."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from edgeverify.audit import Audit, Mark, verify_audit
from edgeverify.keys import load_public_key
from tests.support.asking import COMPLETION, GO, ask
from tests.support.grpc_client import client, refusal
from tests.support.llama import GRPC, MODEL_NAME, SERVER, ServerProcess, running_server
from tests.support.scraping import values
from tests.support.small_disk import SmallDisk

_GO = dict(GO)
_VERIFY = SERVER.parent / "verify"


def _settings(folder: Path, **more: object) -> dict[str, Any]:
    state = folder / "state"
    state.mkdir(exist_ok=True)
    given = {"server.state_dir": str(state), "server.audit.enabled": True}
    return given | {f"server.audit.{name}": value for name, value in more.items()}


def _ask(server: ServerProcess, document: Any = None, path: str = COMPLETION) -> tuple[int, Any]:
    answer = ask(server, path, document)
    return answer.status, answer.document


def _edgeserve(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = server.environment | {"PYTHONPATH": f"{server.environment['PYTHONPATH']}:{_VERIFY}"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "edgeserve", *arguments],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def _verify(server: ServerProcess, folder: Path, *marks: Mark) -> Audit:
    pem = _edgeserve(server, "audit", "key").stdout
    return verify_audit([folder / "state/audit"], load_public_key(pem.encode()), marks=marks)


def _lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "state/audit").glob("*.jsonl"))
    return [json.loads(row) for path in files for row in path.read_bytes().splitlines()]


def _ask_until_gone(server: ServerProcess) -> None:
    while True:
        try:
            assert _ask(server, _GO | {"max_tokens": 1})[0] == 200
        except (OSError, http.client.HTTPException):
            return


def _wait(what: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_holds_what_became_of_requests(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    card = tmp_path / "model.json"
    card.write_text(
        json.dumps(
            {
                "files": [
                    {
                        "path": str(scripted_model),
                        "size_bytes": scripted_model.stat().st_size,
                        "digest": "sha256:" + "5" * 64,
                        "digest_before_hex": "",
                        "digest_after_zero_bytes": 0,
                    }
                ]
            }
        )
    )
    settings = _settings(tmp_path) | {"model.card": str(card), "model.check": "never"}
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        assert _ask(server, _GO)[0] == 200
        assert _ask(server, _GO)[0] == 200
        assert _ask(server, _GO | {"prompt": "loop", "max_tokens": 7})[0] == 200
        assert _ask(server, _GO | {"max_tokens": -1})[0] == 400
        assert _ask(server, None, "/nowhere")[0] == 404
        assert server.terminate() == 0
        audit = _verify(server, tmp_path)
    assert (audit.unsigned_lines, audit.notes) == (0, ())
    lines = _lines(tmp_path)
    assert [line["kind"] for line in lines] == [
        "file", "start", "checkpoint", "request", "request", "request", "refused", "stop", "checkpoint",
    ]  # fmt: skip
    assert lines[1]["model_digest"] == "sha256:" + "5" * 64
    first, second, third = lines[3:6]
    assert first["prompt_hmac"] == second["prompt_hmac"] != third["prompt_hmac"]
    assert (third["outcome"], third["status"], third["output_tokens"]) == ("length", 200, 7)
    assert (first["client"], first["interface"], first["route"]) == ("anonymous", "http", "/v1/completions")
    assert first["model_digest"] == "sha256:" + "5" * 64
    assert lines[6]["statuses"] == {"400": 1, "404": 1}
    everything = "".join(path.read_text() for path in (tmp_path / "state/audit").glob("*.jsonl"))
    assert "loop" not in everything
    assert "Hello" not in everything


def test_prompts_in_the_clear_where_that_is_asked_for(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    with running_server(llama_host, tmp_path, scripted_model, _settings(tmp_path, prompts=True)) as server:
        messages = [{"role": "user", "content": 'how "are" \\ you,\n\u2028 \U0001f600?'}]
        assert (
            _ask(
                server, {"model": MODEL_NAME, "messages": messages, "max_tokens": 4}, "/v1/chat/completions"
            )[0]
            == 200
        )
        assert _ask(server, _GO)[0] == 200
        assert server.terminate() == 0
        _verify(server, tmp_path)
    assert [line["prompt"] for line in _lines(tmp_path) if line["kind"] == "request"] == [messages, "go"]


def test_the_commands(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, scripted_model, _settings(tmp_path)) as server:
        assert _ask(server, _GO)[0] == 200
        assert server.terminate() == 0
    log = str(tmp_path / "state/audit")
    whole = _edgeserve(server, "audit", "verify", log)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.startswith("verified lines 1 to ")
    (tmp_path / "device.pub").write_text(_edgeserve(server, "audit", "key").stdout)
    assert _edgeserve(server, "audit", "verify", log, "--key", str(tmp_path / "device.pub")).returncode == 0
    path = next((tmp_path / "state/audit").glob("*.jsonl"))
    path.write_bytes(path.read_bytes().replace(b'"status":200', b'"status":201'))
    changed = _edgeserve(server, "audit", "verify", log)
    assert changed.returncode == 7
    assert f"{path.name}:4: line 4 was changed" in changed.stderr
    assert _edgeserve(server, "audit").returncode == 2
    (tmp_path / "state/device.key").unlink()
    for arguments in (("key",), ("verify", log), ("verify", log, "--key", str(tmp_path / "none"))):
        lost = _edgeserve(server, "audit", *arguments)
        assert (lost.returncode, lost.stderr.count("\n")) == (7, 1), lost.stderr


def test_the_head_is_in_the_metrics(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, scripted_model, _settings(tmp_path, checkpoint_s=1)) as server:
        for _ in range(3):
            assert _ask(server, _GO)[0] == 200
        _wait(lambda: values(server).get("edgeserve_audit_checkpoint_line", 0) > 6)
        found = values(server)
        assert found["edgeserve_audit_sound"] == 1
        assert found["edgeserve_audit_lost_lines_total"] == 0
        server.process.kill()
        server.wait()
        mark = Mark(
            line=int(found["edgeserve_audit_checkpoint_line"]),
            digest=f"{int(found['edgeserve_audit_checkpoint_digest']):013x}",
        )
        assert _verify(server, tmp_path, mark).head.line == mark.line
        path = next((tmp_path / "state/audit").glob("*.jsonl"))
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
        cut = _edgeserve(server, "audit", "verify", str(path), "--head", f"{mark.line}:{mark.digest}")
        assert cut.returncode == 7
        assert "its end was cut off" in cut.stderr


@pytest.mark.parametrize("sync", ["line", "checkpoint"])
def test_killed_in_the_middle_of_writing(
    llama_host: Path, scripted_model: Path, tmp_path: Path, sync: str
) -> None:
    settings = _settings(tmp_path, sync=sync, checkpoint_lines=7, checkpoint_s=1)
    written = 0
    for round_ in range(4):
        with running_server(llama_host, tmp_path, scripted_model, settings) as server:
            threads = [threading.Thread(target=_ask_until_gone, args=(server,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            _wait(lambda least=written + 20: values(server).get("edgeserve_audit_lines_total", 0) > least)  # type: ignore[misc]
            time.sleep(0.007 * round_)
            written = int(values(server)["edgeserve_audit_lines_total"])
            server.process.send_signal(signal.SIGKILL)
            server.wait()
            for thread in threads:
                thread.join(30)
            # As it lies there after the kill, before anything repairs it: nothing that was written is gone.
            assert _verify(server, tmp_path).last_line >= written
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        assert server.terminate() == 0
        assert _verify(server, tmp_path).unsigned_lines == 0


def test_a_full_disk_stops_serving_where_the_log_is_required(
    llama_host: Path, scripted_model: Path, tmp_path: Path, make_disk: Callable[[int], SmallDisk]
) -> None:
    disk = make_disk(1 << 20)
    settings = _settings(tmp_path, required=True) | {"server.state_dir": str(disk.path)}
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        assert _ask(server, _GO)[0] == 200
        disk.fill(leave_bytes=0)

        def is_refused() -> bool:
            status, document = _ask(server, _GO)
            assert status == 200 or (status, document["error"]["code"]) == (503, "audit_failed")
            return status == 503

        _wait(is_refused)
        assert _ask(server, None, "/readyz") == (503, {"status": "audit_failed"})
        assert _ask(server, None, "/livez")[0] == 200
        assert values(server)["edgeserve_audit_sound"] == 0
        assert "No space left on device" in server.wait_for(r"error audit problem=.*")[0]
        disk.make_room()
        _wait(lambda: _ask(server, _GO)[0] == 200)
        assert _ask(server, None, "/readyz")[0] == 200
        assert server.terminate() == 0
    pem = _edgeserve(server, "audit", "key").stdout
    audit = verify_audit([disk.path / "audit"], load_public_key(pem.encode()))
    assert audit.notes == ()
    assert server.log.count(" error audit ") == 1


def test_a_full_disk_is_told_where_the_log_is_not_required(
    llama_host: Path, scripted_model: Path, tmp_path: Path, make_disk: Callable[[int], SmallDisk]
) -> None:
    disk = make_disk(1 << 20)
    settings = _settings(tmp_path) | {"server.state_dir": str(disk.path)}
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        disk.fill(leave_bytes=0)
        _wait(lambda: _ask(server, _GO)[0] == 200 and values(server)["edgeserve_audit_sound"] == 0)
        assert _ask(server, None, "/readyz")[0] == 200
        disk.make_room()
        _wait(lambda: values(server)["edgeserve_audit_sound"] == 1)
        assert server.terminate() == 0
    lines = [
        json.loads(row)
        for path in (disk.path / "audit").glob("*.jsonl")
        for row in path.read_bytes().splitlines()
    ]
    assert sum(line["kind"] == "request" for line in lines) >= 1
    assert server.log.count(" error audit ") == 1


def test_grpc_is_held_to_it_too(
    llama_host: Path, scripted_model: Path, tmp_path: Path, make_disk: Callable[[int], SmallDisk]
) -> None:
    disk = make_disk(1 << 20)
    settings = _settings(tmp_path, required=True) | dict(GRPC) | {"server.state_dir": str(disk.path)}
    with (
        running_server(llama_host, tmp_path, scripted_model, settings) as server,
        client(server.grpc_target) as asker,
    ):
        watch = asker.watch()
        assert next(watch) == health_pb2.HealthCheckResponse.SERVING
        assert asker.answer(prompt="go", temperature=0.0)[0].startswith("Hello")
        disk.fill(leave_bytes=0)
        _wait(lambda: _ask(server, _GO)[0] == 503)
        assert next(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert refusal(lambda: asker.answer(prompt="go"))[0] is grpc.StatusCode.UNAVAILABLE
        disk.make_room()
        assert next(watch) == health_pb2.HealthCheckResponse.SERVING
        assert asker.answer(prompt="go", temperature=0.0)[0].startswith("Hello")
        assert server.terminate() == 0
    lines = [json.loads(row) for row in (disk.path / "audit/audit-00000001.jsonl").read_bytes().splitlines()]
    found = [line for line in lines if line["kind"] == "request" and line["interface"] == "grpc"]
    assert [line["outcome"] for line in found] == ["stop", "stop"]
    assert found[0]["route"].endswith("/Generate")
    assert found[0]["prompt_hmac"] == next(
        line["prompt_hmac"] for line in lines if line["kind"] == "request" and line["interface"] == "http"
    )


def test_a_removed_file_stops_serving_until_a_restart(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    settings = _settings(tmp_path, required=True)
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        assert _ask(server, _GO)[0] == 200
        (tmp_path / "state/audit/audit-00000001.jsonl").unlink()
        _wait(lambda: _ask(server, None, "/readyz") == (503, {"status": "audit_failed"}))
        assert _ask(server, _GO)[0] == 503
        time.sleep(2.5)  # longer than it takes to look again
        assert _ask(server, _GO)[0] == 503
        assert server.terminate() == 0
        pem = _edgeserve(server, "audit", "key").stdout
    with pytest.raises(Exception, match="1 fault") as caught:
        verify_audit([tmp_path / "state/audit"], load_public_key(pem.encode()))
    assert "are missing" in caught.value.reasons[0]  # type: ignore[attr-defined]
    assert "damaged" in [line["kind"] for line in _lines(tmp_path)]
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        assert _ask(server, _GO)[0] == 200


def test_what_cannot_be_opened(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = _settings(tmp_path, required=True)
    (tmp_path / "state/audit").write_text("in the way")
    with running_server(llama_host, tmp_path, tiny_model, settings, wait_ready=False) as server:
        assert server.wait() == 7
        assert "error audit problem=" in server.log
    relaxed = settings | {"server.audit.required": False}
    with running_server(llama_host, tmp_path, tiny_model, relaxed) as server:
        server.wait_for("error audit problem=")
        assert _ask(server, None, "/readyz")[0] == 200
        (tmp_path / "state/audit").unlink()
        server.wait_for("info audit file=")
        assert server.terminate() == 0


def test_a_lost_key_is_not_made_anew(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = _settings(tmp_path, required=True)
    with running_server(llama_host, tmp_path, tiny_model, settings) as server:
        assert server.terminate() == 0
    (tmp_path / "state/device.key").unlink()
    with running_server(llama_host, tmp_path, tiny_model, settings, wait_ready=False) as server:
        assert server.wait() == 7
        assert "no key to it" in server.log
    assert not (tmp_path / "state/device.key").exists()


def test_two_servers_do_not_share_a_log(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = _settings(tmp_path, required=True)
    with running_server(llama_host, tmp_path, tiny_model, settings):
        (tmp_path / "second").mkdir()
        with running_server(
            llama_host, tmp_path / "second", tiny_model, settings, wait_ready=False
        ) as second:
            assert second.wait() == 7
            assert "in use by another server" in second.log

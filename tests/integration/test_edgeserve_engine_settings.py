"""How the engine can be set up, with the real library: cache types, threads, memory, prefixes, and the end of the context."""

import contextlib
import dataclasses
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeserve.engine.opening import open_llama
from edgeserve.engine.protocol import Engine, EngineError, Finish, FinishReason, Request, Sampling, Token
from edgeserve.log import Log
from edgeserve.settings import EngineSettings
from tests.support.llama import running_server, server_environment, write_runtime
from tests.support.tiny_gguf import BOS, write_tiny_gguf

_GREEDY = Sampling(temperature=0.0)
_TEXT = "Obstacle ahead left right at the " * 6


@pytest.fixture(scope="module", autouse=True)
def _library(llama_host: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(llama_host))
        patch.setenv("LLAMA_CPP_LIB_PATH", str(llama_host / "llama_cpp" / "lib"))
        yield


@contextlib.contextmanager
def _loaded(model: Path, **settings: Any) -> Iterator[Engine]:
    given: dict[str, Any] = {"context_tokens": 256, "batch_tokens": 64, "threads": 1} | settings
    engine = open_llama((str(model),), EngineSettings(**given), Log())
    try:
        yield engine
    finally:
        engine.close()


def _request(engine: Engine, name: str, text: str, output_tokens: int = 12) -> Request:
    prompt = (BOS, *engine.tokenize(text, special=False))
    return Request(id=name, prompt=prompt, output_tokens=output_tokens, sampling=_GREEDY)


def _run(engine: Engine, request: Request) -> tuple[tuple[int, ...], Finish]:
    """Submit a request and step until it is over, whatever else runs; return its tokens and its end."""
    tokens: list[int] = []
    engine.submit(request)
    while True:
        for event in engine.step():
            if event.request_id != request.id:
                continue
            if isinstance(event, Token):
                tokens.append(event.token)
            elif isinstance(event, Finish):
                return tuple(tokens), event


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "change",
    [
        {"kv_type": "q8_0", "flash_attention": "on"},
        {"kv_type": "q4_0"},
        {"flash_attention": "off"},
        {"flash_attention": "on"},
        {"mmap": False},
        {"threads": 2},
        {"threads": 1, "batch_threads": 2},
        {"threads": 2, "batch_threads": 1},
    ],
)
def test_each_setting_answers(tiny_model: Path, change: dict[str, Any]) -> None:
    with _loaded(tiny_model) as usual, _loaded(tiny_model, **change) as other:
        tokens, end = _run(other, _request(other, "x", "left right at the"))
        assert end.output_tokens == 12
        if "kv_type" not in change:
            assert tokens == _run(usual, _request(usual, "x", "left right at the"))[0]


def test_a_quantised_cache_takes_less_memory(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", layers=4)
    sizes = []
    for kv_type in ("f16", "q8_0", "q4_0"):
        before = _resident_bytes()
        with _loaded(model, context_tokens=1 << 16, kv_type=kv_type):
            sizes.append(_resident_bytes() - before)
    f16, q8_0, q4_0 = sizes
    assert f16 > 1.6 * q8_0
    assert q8_0 > 1.4 * q4_0


def test_a_quantised_cache_without_flash_attention_is_refused(tiny_model: Path) -> None:
    with (
        pytest.raises(EngineError, match="flash_attn"),
        _loaded(tiny_model, kv_type="q8_0", flash_attention="off"),
    ):
        pass


@pytest.mark.parametrize("mmap", [True, False])
def test_the_file_is_mapped_or_read(tmp_path: Path, *, mmap: bool) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf")
    with _loaded(model, mmap=mmap):
        assert (str(model) in Path("/proc/self/maps").read_text()) is mmap


def _serve_with_memory_limit(llama_host: Path, runtime: Path, limit: str) -> subprocess.CompletedProcess[str]:
    """Run a server that may lock `limit` bytes of memory and nothing beyond, root or not."""
    unprivileged = ("setpriv", "--bounding-set", "-ipc_lock") if os.geteuid() == 0 else ()
    return subprocess.run(
        [
            *unprivileged,
            "prlimit",
            f"--memlock={limit}:{limit}",
            sys.executable,
            "-P",
            "-m",
            "edgeserve",
            "serve",
        ],
        env=server_environment(llama_host, runtime),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_mlock_says_what_limit_stands_in_its_way(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    runtime = write_runtime(tmp_path, tiny_model, {"engine.mlock": True})
    done = _serve_with_memory_limit(llama_host, runtime, "1048576")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if "engine-failed" in line)
    assert "engine.mlock" in line
    assert "may lock 1 MiB" in line
    assert "RLIMIT_MEMLOCK" in line


def test_mlock_locks_the_weights(llama_host: Path, tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", dim=1024, ff=4096, layers=4)
    with running_server(llama_host, tmp_path, model, {"engine.mlock": True, "engine.mmap": False}) as server:
        status = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text()
        locked = next(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("Locked:")
        )
    assert locked > model.stat().st_size


@pytest.fixture(scope="module")
def flat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer: what it caches of a token depends on that token and its place, not on those before."""
    return write_tiny_gguf(tmp_path_factory.mktemp("flat") / "flat.gguf", layers=1, dtype="f32", seed=3)


_SHIFT: dict[str, Any] = {"context_tokens": 64, "past_context": "shift", "keep_tokens": 8}


def test_an_answer_goes_on_past_the_context(scripted_model: Path) -> None:
    with _loaded(scripted_model, **_SHIFT, slots=2) as engine:
        assert engine.facts.can_shift
        engine.submit(_request(engine, "beside", "loop", output_tokens=150))
        tokens, end = _run(engine, _request(engine, "long", "loop", output_tokens=300))
        assert (len(tokens), end.reason) == (300, FinishReason.LENGTH)
        assert engine.stats().kv_tokens <= 2 * 64


@pytest.mark.parametrize(
    "change", [{"kv_type": "q8_0"}, {"kv_type": "q4_0"}, {"flash_attention": "off"}, {"threads": 2}]
)
def test_every_cache_can_be_shifted_and_copied(scripted_model: Path, change: dict[str, Any]) -> None:
    with _loaded(scripted_model, **_SHIFT | change, slots=2) as engine:
        first = _request(engine, "first", "la " * 10 + "loop", output_tokens=200)
        engine.submit(first)
        while not engine.stats().output_tokens:
            engine.step()
        tokens, end = _run(engine, dataclasses.replace(first, id="second"))
        assert (len(tokens), end.reason) == (200, FinishReason.LENGTH)
        assert end.cached_tokens == len(first.prompt) - 1


def test_a_shifted_cache_answers_as_a_fresh_one(flat_model: Path) -> None:
    with _loaded(flat_model, **_SHIFT) as engine, _loaded(flat_model) as fresh:
        request = _request(engine, "x", "on and on the left at the right", output_tokens=90)
        whole = (*request.prompt, *_run(engine, request)[0])
        # Full with 64 tokens; of the 56 behind the first 8, the older 28 are forgotten.
        left = (*whole[:8], *whole[36:64], whole[64])
        expected = _run(fresh, dataclasses.replace(request, prompt=left, output_tokens=26))[0]
        assert whole[65 : 65 + 26] == expected
        unshifted = _run(fresh, dataclasses.replace(request, prompt=whole[:65], output_tokens=26))[0]
        assert unshifted != expected, "the model does not show whether anything was forgotten"


def test_what_was_shifted_is_not_taken_for_a_prefix(tiny_model: Path) -> None:
    with _loaded(tiny_model, **_SHIFT) as engine, _loaded(tiny_model) as fresh:
        request = _request(engine, "x", "on and on the left at the right", output_tokens=80)
        shifted = _run(engine, request)[0]
        whole = (*request.prompt, *shifted)
        again = dataclasses.replace(request, prompt=(*whole[:8], *whole[36:60]), output_tokens=12)
        tokens, end = _run(engine, again)
        assert end.cached_tokens == 8
        assert tokens == _run(fresh, again)[0]


def test_a_prompt_must_leave_room_for_a_token(tiny_model: Path) -> None:
    with _loaded(tiny_model, **_SHIFT) as engine:
        with pytest.raises(EngineError, match="context"):
            engine.submit(Request(id="x", prompt=(BOS,) * 64, output_tokens=1, sampling=_GREEDY))
        tokens, _ = _run(engine, Request(id="x", prompt=(BOS,) * 63, output_tokens=70, sampling=_GREEDY))
        assert len(tokens) == 70


def test_without_shift_the_context_is_the_end(tiny_model: Path) -> None:
    with _loaded(tiny_model, context_tokens=64) as engine:
        assert not engine.facts.can_shift
        with pytest.raises(EngineError, match="context"):
            engine.submit(_request(engine, "x", "the", output_tokens=64))


def test_a_prefix_is_reused_from_a_slot_that_is_busy(tiny_model: Path) -> None:
    with _loaded(tiny_model, slots=2) as engine, _loaded(tiny_model) as fresh:
        prefix = len(_request(engine, "x", _TEXT).prompt)
        engine.submit(_request(engine, "busy", _TEXT + "low", output_tokens=100))
        while not engine.stats().output_tokens:
            engine.step()
        before = engine.stats().prompt_tokens
        request = _request(engine, "next", _TEXT + "Battery")
        tokens, end = _run(engine, request)
        assert end.cached_tokens >= prefix - 2
        assert engine.stats().prompt_tokens - before == len(request.prompt) - end.cached_tokens
        assert tokens == _run(fresh, request)[0]
        # The other one goes on undisturbed.
        busy = engine.cancel("busy")
        assert busy is not None
        assert busy.reason is FinishReason.CANCELLED


def test_the_busy_slot_answers_as_if_nothing_had_been_copied(tiny_model: Path) -> None:
    with _loaded(tiny_model, slots=2) as engine, _loaded(tiny_model) as fresh:
        request = _request(engine, "busy", _TEXT + "low", output_tokens=30)
        engine.submit(request)
        tokens: list[int] = []
        other = _request(engine, "next", _TEXT + "Battery", output_tokens=5)
        is_over = False
        while not is_over:
            for event in engine.step():
                if event.request_id == "busy" and isinstance(event, Token):
                    tokens.append(event.token)
                is_over = is_over or (event.request_id == "busy" and isinstance(event, Finish))
            if len(tokens) == 3:
                engine.submit(other)
        assert tuple(tokens) == _run(fresh, request)[0]


def test_the_server_answers_past_the_context(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = {
        "engine.context_tokens": 256,
        "engine.past_context": "shift",
        "server.limits.prompt_tokens": 200,
        "server.limits.output_tokens": 1000,
    }
    with running_server(llama_host, tmp_path, scripted_model, overrides) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        body = {"model": "tiny", "prompt": "loop", "temperature": 0, "max_tokens": 1000}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        document = json.loads(connection.getresponse().read())
        connection.close()
    assert document["usage"]["completion_tokens"] == 1000
    assert document["choices"][0]["finish_reason"] == "length"
    assert document["choices"][0]["text"] == "la li lo lu" * 250

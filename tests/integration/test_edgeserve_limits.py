"""Limits of a real edgeserve process: by client, by time; the event loop goes on whatever the engine does."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from edgeserve.answers import End
from edgeserve.calls import CompletionCall, Generation
from edgeserve.deadlines import Deadlines
from edgeserve.engine.library import Library
from edgeserve.engine.llama import LlamaEngine
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import Engine, Sampling
from edgeserve.generate import Generator
from edgeserve.log import Log
from edgeserve.prompts import PromptMaker
from edgeserve.records import Record
from edgeserve.scheduler import Scheduler, State
from edgeserve.settings import EngineSettings, LimitSettings
from tests.support.llama import MODEL_NAME, ServerProcess, running_server
from tests.support.tiny_gguf import write_tiny_gguf

_LOOP: dict[str, Any] = {"model": MODEL_NAME, "prompt": "loop", "temperature": 0}
_GO: dict[str, Any] = {"model": MODEL_NAME, "prompt": "go", "temperature": 0}
_ENDLESS = {"engine.context_tokens": 65536, "server.limits.output_tokens": 65000, "engine.slots": 1}


class _Request:
    """A completion under way, from an address of the loopback network."""

    def __init__(self, server: ServerProcess, body: Mapping[str, Any], *, address: str = "127.0.0.1") -> None:
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", server.port, timeout=30, source_address=(address, 0)
        )
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/completions", json.dumps(body), headers)

    def answer(self) -> tuple[int, Any, Mapping[str, str]]:
        response = self._connection.getresponse()
        document = json.loads(response.read())
        self._connection.close()
        return response.status, document, {name.lower(): value for name, value in response.getheaders()}

    def first_event(self) -> None:
        assert b"data: " in self._connection.getresponse().readline()

    def close(self) -> None:
        self._connection.close()
        if self._connection.sock is not None:
            self._connection.sock.close()


def _ask(
    server: ServerProcess, body: Mapping[str, Any], *, address: str = "127.0.0.1"
) -> tuple[int, Any, Mapping[str, str]]:
    return _Request(server, body, address=address).answer()


def test_one_client_may_have_so_many_requests(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = _ENDLESS | {"engine.slots": 2, "server.limits.client_requests": 1}
    with running_server(llama_host, tmp_path, scripted_model, overrides) as server:
        busy = _Request(server, _LOOP | {"stream": True, "max_tokens": 60000})
        busy.first_event()
        status, document, headers = _ask(server, _GO)
        assert (status, document["error"]["code"]) == (429, "client_limit")
        assert document["error"]["type"] == "rate_limit_error"
        assert 1 <= int(headers["retry-after"]) <= 60
        assert _ask(server, _GO, address="127.0.0.2")[0] == 200
        busy.close()
        server.wait_for("outcome=client_gone")
        assert _ask(server, _GO)[0] == 200


def test_clients_take_turns(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, scripted_model, _ENDLESS) as server:
        busy = _Request(server, _LOOP | {"stream": True, "max_tokens": 60000})
        busy.first_event()
        done: list[str] = []

        def ask(address: str) -> None:
            assert _ask(server, _LOOP | {"max_tokens": 400}, address=address)[0] == 200
            done.append(address)

        threads = [threading.Thread(target=ask, args=("127.0.0.1",)) for _ in range(6)]
        for thread in threads:
            thread.start()
        # Long enough for all to wait in the queue; a request that looked would take a place itself.
        time.sleep(0.5)
        threads.append(threading.Thread(target=ask, args=("127.0.0.2",)))
        threads[-1].start()
        time.sleep(0.5)
        busy.close()
        for thread in threads:
            thread.join(30)
    assert len(done) == 7
    # The other address comes after one at most of those that came before it.
    assert "127.0.0.2" in done[:2]


def test_a_client_that_fills_the_queue_makes_room_for_another(
    llama_host: Path, scripted_model: Path, tmp_path: Path
) -> None:
    with running_server(
        llama_host, tmp_path, scripted_model, _ENDLESS | {"server.limits.queue": 2}
    ) as server:
        busy = _Request(server, _LOOP | {"stream": True, "max_tokens": 60000})
        busy.first_event()
        waiting = [_Request(server, _GO), _Request(server, _GO)]
        time.sleep(0.5)
        other = _Request(server, _GO, address="127.0.0.2")
        status, document, headers = waiting.pop().answer()
        assert (status, document["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(headers["retry-after"]) <= 60
        busy.close()
        assert [request.answer()[0] for request in (other, *waiting)] == [200, 200]


def test_no_token_in_time(llama_host: Path, scripted_model: Path, tmp_path: Path) -> None:
    overrides = _ENDLESS | {"server.limits.first_token_s": 1}
    with running_server(llama_host, tmp_path, scripted_model, overrides) as server:
        busy = _Request(server, _LOOP | {"stream": True, "max_tokens": 60000})
        busy.first_event()
        started = time.monotonic()
        for stream in (False, True):
            status, document, headers = _ask(server, _GO | {"stream": stream})
            assert (status, document["error"]["code"]) == (504, "first_token_timeout")
            assert headers["x-should-retry"] == "false"
        assert time.monotonic() - started < 20
        busy.close()
        # It went on past that time, since it has its first token.
        server.wait_for("outcome=client_gone")
        assert _ask(server, _GO)[0] == 200


def _call(prompt: str, output_tokens: int) -> CompletionCall:
    generation = Generation(
        model=MODEL_NAME,
        is_stream=True,
        wants_usage=False,
        output_tokens=output_tokens,
        output_field="max_tokens",
        sampling=Sampling(temperature=0.0),
        stops=(),
    )
    return CompletionCall(generation=generation, prompt=prompt)


async def _take(generator: Generator, name: str, call: CompletionCall) -> None:
    now = asyncio.get_running_loop().time()
    outputs = generator.outputs(
        call,
        request_id=name,
        deadlines=Deadlines(first_token=now + 60, end=now + 60),
        record=Record(interface="test", method="", route=""),
    )
    async with aclosing(outputs):
        ends = [output async for output in outputs if isinstance(output, End)]
    assert len(ends) == 1


async def _largest_lag(until: asyncio.Future[Any]) -> float:
    """Ask for a turn of the event loop again and again; return the longest that one was late, in seconds."""
    loop = asyncio.get_running_loop()
    lag = 0.0
    while not until.done():
        due = loop.time() + 0.002
        await asyncio.sleep(0.002)
        lag = max(lag, loop.time() - due)
    return lag


@pytest.mark.slow
def test_the_event_loop_never_waits_for_the_engine(
    llama_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are tokenised and forward passes run beside the loop: passes of a second, and no turn is late by a fifth."""
    model = write_tiny_gguf(tmp_path / "m.gguf", dim=1024, ff=4096, layers=4, context_tokens=2048)
    monkeypatch.syspath_prepend(str(llama_host))
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(llama_host / "llama_cpp" / "lib"))
    settings = EngineSettings(context_tokens=2048, batch_tokens=2048, slots=4, threads=1)
    passes: list[float] = []

    class TimedEngine(LlamaEngine):
        """Notes how long its forward passes take."""

        def step(self) -> Any:
            started = time.monotonic()
            events = super().step()
            passes.append(time.monotonic() - started)
            return events

    async def measure() -> float:
        changed = asyncio.Event()
        engines: list[Engine] = []

        def make() -> Engine:
            library = Library("", Log())
            engines.append(TimedEngine(library, LlamaModel(library, (str(model),)), settings))
            return engines[-1]

        scheduler = Scheduler(make, slots=4, queue=32, log=Log(), on_change=changed.set)
        scheduler.start()
        await changed.wait()
        assert scheduler.state is State.READY
        limits = LimitSettings(prompt_tokens=1900, output_tokens=64)
        generator = Generator(scheduler, PromptMaker(engines[0], limits, Log()))
        prompts = [f"{number} " + "left right ahead " * (20 * number) for number in range(8, 24, 2)]
        work = asyncio.gather(
            *(_take(generator, str(number), _call(prompt, 8)) for number, prompt in enumerate(prompts))
        )
        lag = await _largest_lag(work)
        await work
        assert await asyncio.to_thread(scheduler.close, 20)
        return lag

    lag = asyncio.run(measure())
    assert max(passes) > 0.5, "the passes are too short to show anything"
    assert lag < max(passes) / 5

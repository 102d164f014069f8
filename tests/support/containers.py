"""Talking to an image of ours that runs in a container."""

import time
from typing import Any

import httpx2

from tests.support.built import QUESTION
from tests.support.peers.docker import Container

# Emulated, on a machine that does other things too.
_PATIENCE_S = 180.0


def wait_ready(container: Container) -> dict[str, Any]:
    """Wait until the server is ready and return what it says of itself."""
    return wait_ready_at(container.url, container.logs)


def wait_ready_at(url: str, logs: Any) -> dict[str, Any]:
    """Wait until the server at a URL is ready; `logs` gives what it wrote, for the message when it never is."""
    deadline = time.monotonic() + _PATIENCE_S
    with httpx2.Client(trust_env=False, timeout=10.0) as client:
        while time.monotonic() < deadline:
            try:
                told = client.get(f"{url}/readyz")
            except httpx2.TransportError:
                time.sleep(0.1)
                continue
            if told.status_code == 200:
                document: dict[str, Any] = told.json()
                return document
            time.sleep(0.1)
    raise AssertionError(f"not ready within {_PATIENCE_S:.0f} s:\n{logs()}")


def answer(container: Container) -> str:
    """Ask the question of the smoke test and return the answer, which is greedy and so always the same."""
    return answer_at(container.url)


def answer_at(url: str) -> str:
    """Ask the question of the smoke test at a URL."""
    request = {
        "model": "edgebuild",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 48,
        "temperature": 0,
    }
    with httpx2.Client(trust_env=False, timeout=_PATIENCE_S) as client:
        request["model"] = client.get(f"{url}/v1/models").json()["data"][0]["id"]
        told = client.post(f"{url}/v1/chat/completions", json=request)
    assert told.status_code == 200, told.text
    text: str = told.json()["choices"][0]["message"]["content"]
    return text.strip()


def wait_healthy(container: Container) -> None:
    """Wait until the container's own health check says so."""
    deadline = time.monotonic() + _PATIENCE_S
    while (health := container.health()) != "healthy":
        assert health == "starting", f"{health}:\n{container.logs()}"
        assert time.monotonic() < deadline, container.logs()
        time.sleep(0.2)

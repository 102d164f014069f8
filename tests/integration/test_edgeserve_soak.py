"""A thousand requests from 32 clients, a tenth of which leave midway: nothing fails, nothing leaks, no slot is held."""

from pathlib import Path

import pytest

from tests.support.llama import MODEL_NAME, running_server
from tests.support.soak import CLIENTS, GROWTH, soak, under_way

SLOTS = 4
OVERRIDES = {"engine.slots": SLOTS, "server.limits.queue": CLIENTS}


@pytest.mark.slow
def test_a_soak_leaves_nothing_behind(llama_host: Path, tiny_model: Path, tmp_path: Path) -> None:
    with running_server(llama_host, tmp_path, tiny_model, OVERRIDES) as server:
        soak(server.port, model=MODEL_NAME, requests=300, seed=1)
        before_bytes = server.resident_bytes
        soak(server.port, model=MODEL_NAME)
        after_bytes = server.resident_bytes
        assert under_way(server.port) == 0
        assert server.terminate() == 0
        assert " error " not in server.log
    assert after_bytes <= before_bytes * (1 + GROWTH)

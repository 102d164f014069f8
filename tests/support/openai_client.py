"""The official `openai` client, asking an edgeserve process."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.llama import ServerProcess


def openai_client(server: ServerProcess, *, key: str = "none") -> OpenAI:
    """Make a client that asks once and no more: what fails is to be seen."""
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def scripted(scripted_server: ServerProcess) -> Iterator[OpenAI]:
    """A client of the scripted model's server."""
    with openai_client(scripted_server) as client:
        yield client


@pytest.fixture(scope="module")
def tiny(tiny_server: ServerProcess) -> Iterator[OpenAI]:
    """A client of the random model's server."""
    with openai_client(tiny_server) as client:
        yield client

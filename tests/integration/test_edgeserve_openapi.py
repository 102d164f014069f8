"""The OpenAPI document of a real server."""

from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from edgeserve.access.keys import make_key
from tests.support.asking import ask
from tests.support.certificates import Authority, client_context
from tests.support.llama import MODEL_NAME, ServerProcess, running_server

_PATH = "/openapi.json"


def test_is_served_and_valid(scripted_server: ServerProcess) -> None:
    answer = ask(scripted_server, _PATH)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    OpenAPIV31SpecValidator(answer.document).validate()
    request = answer.document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert request["model"]["const"] == MODEL_NAME
    assert request["max_tokens"]["maximum"] == 512
    assert answer.document["security"] == [{}]


@pytest.mark.parametrize("has_certificates", [False, True])
def test_is_behind_the_door_and_says_what_opens_it(
    llama_host: Path, scripted_model: Path, tmp_path: Path, has_certificates: bool
) -> None:
    key, line = make_key("phone")
    (tmp_path / "keys").write_text(line + "\n")
    settings, context = {"server.access.keys_file": str(tmp_path / "keys")}, None
    if has_certificates:
        authority, mounted = Authority(), tmp_path / "tls"
        mounted.mkdir()
        authority.issue("device", is_server=True).write(mounted)
        (mounted / "ca.crt").write_bytes(authority.certificate)
        settings["server.access.tls_folder"] = str(mounted)
        context = client_context(authority, tmp_path)
    with running_server(llama_host, tmp_path, scripted_model, settings) as server:
        assert ask(server, _PATH, context=context).code == "missing_api_key"
        answer = ask(server, _PATH, context=context, headers={"Authorization": f"Bearer {key}"})
    assert answer.status == 200
    assert answer.document["security"] == [{"key": []}] + [{"certificate": []}] * has_certificates
    assert set(answer.document["components"]["securitySchemes"]) == (
        {"key", "certificate"} if has_certificates else {"key"}
    )

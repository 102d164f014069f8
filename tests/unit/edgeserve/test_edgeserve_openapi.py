"""The OpenAPI document: valid by its specification, of this very server, and the one in docs/."""

import json
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from edgeserve.http.openapi.document import make_document
from edgeserve.settings import LimitSettings, MetricsSettings, ModelSettings, Runtime, ServerSettings

_DOCS = Path(__file__).parents[3] / "docs" / "openapi.json"
_ANY_WAY = ((), ("key",), ("certificate",))


def _runtime(server: ServerSettings | None = None) -> Runtime:
    model = ModelSettings(name="MODEL", files=("/models/model.gguf",))
    return Runtime(schema_version=1, model=model, server=server or ServerSettings())


def _property(document: dict[str, Any], schema: str, name: str) -> Any:
    return document["components"]["schemas"][schema]["properties"][name]


def test_the_file_in_docs_is_a_server_with_default_settings(pytestconfig: pytest.Config) -> None:
    text = json.dumps(make_document(_runtime(), ways=_ANY_WAY), indent=1, ensure_ascii=False) + "\n"
    if pytestconfig.getoption("--update-golden", default=False):
        _DOCS.write_text(text)
    assert text == _DOCS.read_text(), "pytest --update-golden writes it anew"


@pytest.mark.parametrize(
    "ways", [((),), (("key",),), (("certificate",),), (("key", "certificate"),), _ANY_WAY]
)
@pytest.mark.parametrize(
    "metrics", [MetricsSettings(enabled=False), MetricsSettings(), MetricsSettings(open=True)]
)
def test_is_valid(ways: tuple[tuple[str, ...], ...], metrics: MetricsSettings) -> None:
    document = make_document(_runtime(ServerSettings(metrics=metrics)), ways=ways)
    OpenAPIV31SpecValidator(document).validate()
    assert ("/metrics" in document["paths"]) is metrics.enabled
    if metrics.enabled:
        assert ("security" in document["paths"]["/metrics"]["get"]) is metrics.open
    assert document["paths"]["/livez"]["get"]["security"] == []
    assert document["security"] == [{name: [] for name in way} for way in ways]


def test_the_validator_refuses_what_is_wrong() -> None:
    document = make_document(_runtime(), ways=((),))
    document["paths"]["/livez"]["get"]["respones"] = {}
    with pytest.raises(Exception, match="respones"):
        OpenAPIV31SpecValidator(document).validate()


def test_has_the_limits_and_the_model_of_the_server() -> None:
    limits = LimitSettings(output_tokens=77)
    document = make_document(_runtime(ServerSettings(limits=limits)), ways=((),))
    assert _property(document, "ChatCompletionRequest", "max_tokens")["maximum"] == 77
    assert _property(document, "CompletionRequest", "model")["const"] == "MODEL"

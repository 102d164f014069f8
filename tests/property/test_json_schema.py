"""Whatever a grammar made from a schema allows is valid against the schema, by a validator that shares no code with it."""

import json
from typing import Any

import jsonschema_rs
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.grammar.json_schema import schema_grammar
from edgeserve.grammar.keywords import SchemaError
from tests.support.gbnf import Gbnf

_NAMES = st.sampled_from(["a", "ab", "b", 'quo"te', "back\\slash", "€", ""])
_CONSTANTS = st.one_of(
    st.none(), st.booleans(), st.integers(-50, 50), st.sampled_from(["", "x", "x\ny", 'q"'])
) | st.just({"k": [1, None]})
_PATTERNS = st.sampled_from(
    ["^a+$", "b", "^[a-f0-9]{2,4}$", "^(?:x|y\\.)*z?$", "\\d{3}", "^[^\\w]$", "^.{2}$", "^\\S+@\\S+$", '^["\\\\]$', "^\\u00e9?$"]
)  # fmt: skip
_WHOLE = st.integers(-1200, 1200)


def _bounds(draw: Any, low: str, high: str, numbers: Any) -> dict[str, int]:
    first, second = sorted((draw(numbers), draw(numbers)))
    chosen: dict[str, int] = draw(
        st.sampled_from([{}, {low: first}, {high: second}, {low: first, high: second}])
    )
    return chosen


@st.composite
def _leaves(draw: Any) -> Any:
    kind = draw(
        st.sampled_from(["integer", "number", "string", "pattern", "format", "enum", "boolean", "null"])
    )
    match kind:
        case "integer" | "number":
            low = draw(st.sampled_from(["minimum", "exclusiveMinimum"]))
            high = draw(st.sampled_from(["maximum", "exclusiveMaximum"]))
            return {"type": kind} | _bounds(draw, low, high, _WHOLE)
        case "string":
            return {"type": kind} | _bounds(draw, "minLength", "maxLength", st.integers(0, 9))
        case "pattern":
            return {"type": "string", "pattern": draw(_PATTERNS)}
        case "format":
            return {
                "type": "string",
                "format": draw(st.sampled_from(["date", "time", "date-time", "uuid", "ipv4"])),
            }
        case "enum":
            return {"enum": draw(st.lists(_CONSTANTS, min_size=1, max_size=4))}
        case _:
            return {"type": kind}


def _inner(schemas: Any) -> Any:
    @st.composite
    def arrays(draw: Any) -> Any:
        return {"type": "array", "items": draw(schemas)} | _bounds(
            draw, "minItems", "maxItems", st.integers(0, 4)
        )

    @st.composite
    def objects(draw: Any) -> Any:
        properties = draw(st.dictionaries(_NAMES, schemas, max_size=4))
        required = draw(st.lists(st.sampled_from([*properties, "more"]), unique=True, max_size=3))
        other = draw(st.one_of(st.none(), st.booleans(), schemas))
        schema = {"type": "object", "properties": properties, "required": required}
        return schema if other is None else schema | {"additionalProperties": other}

    branches = st.lists(schemas, min_size=1, max_size=3)
    return st.one_of(
        arrays(),
        objects(),
        branches.map(lambda items: {"anyOf": items}),
        branches.map(lambda items: {"oneOf": items}),
    )


_SCHEMAS = st.recursive(_leaves(), _inner, max_leaves=8)


@given(schema=_SCHEMAS, seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_every_text_that_a_grammar_allows_is_valid(schema: Any, seed: int) -> None:
    try:
        grammar = Gbnf(schema_grammar(schema, "schema"))
    except SchemaError:
        return
    text = grammar.generate(seed)
    assert grammar.allows(text)
    jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(json.loads(text))

"""From JSON schemas to grammars: what they allow, what they leave out, and what is refused, where."""

import time
from typing import Any

import pytest

from edgeserve.grammar.json_schema import SchemaCompiler, json_object_grammar, schema_grammar
from edgeserve.grammar.keywords import SchemaError
from tests.support.gbnf import Gbnf

_NODE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["v", "next"],
        }
    },
}
_TAGGED: dict[str, Any] = {
    "oneOf": [
        {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]},
        {"type": "object", "properties": {"k": {"const": "b"}, "n": {"type": "integer"}}, "required": ["k"]},
        {"type": ["string", "null"]},
    ]
}
_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"enum": ["x", "xy", "z\n", 3]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        (
            _FORM,
            ['{"a": 1}', '{"a":1,"c":"xy"}', '{\n  "a": -5, "b": "q\\n", "c":"z\\n"\n}', '{"a":0,"c":3}'],
            ['{"b":"x"}', '{"a":01}', '{"a":1,}', '{"a":1,"b":"\n"}', '{"a":1,  "b":"x"}', '{"a":1,"b":"\\q"}', "{}"],
        ),
        ({"type": "integer", "minimum": -12, "maximum": 345}, list(map(str, range(-12, 346))), ["-13", "346", "00", "1.0"]),
        ({"type": "integer", "minimum": 95, "exclusiveMaximum": 1102}, list(map(str, range(95, 1102))), ["94", "1102", "9"]),
        ({"type": "integer", "exclusiveMaximum": -7}, ["-8", "-1000"], ["-7", "0", "7", "-1"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "1", "0.5", "1.0", "0.999"], ["1.1", "-0.1", "2", "-0"]),
        ({"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 2}, ["-0.5", "0", "1", "1.9"], ["-1", "2", "2.0"]),
        ({"type": "number"}, ["-1.5e10", "0", "12.25"], [".5", "1.", "01", "+1"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"a\\n€"'], ['"a"', '"abcd"', '"\\u0041b"']),
        ({"type": "string", "maxLength": 3500}, ['"' + "a" * size + '"' for size in (0, 999, 2001, 3500)], ['"' + "a" * 3501 + '"']),
        ({"type": "string", "minLength": 2500}, ['"' + "a" * 2500 + '"'], ['"' + "a" * 2499 + '"']),
        ({"type": "string", "pattern": '^[A-Z]{2}-\\d+("|\\\\)?$'}, ['"AB-1"', '"AB-12\\""', '"AB-1\\\\"'], ['"aB-1"', '"AB-"']),
        ({"type": "string", "pattern": "b|^x$"}, ['"abc"', '"x"'], ['"xx"', '"a"']),
        ({"type": "string", "pattern": "^(?:[^a-c]|\\s)*?$"}, ['"xyz \\t"', '""'], ['"a"']),
        ({"type": "string", "format": "date"}, ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"', '"2023-04-31"']),
        ({"type": "string", "format": "date-time"}, ['"2024-01-31T23:59:59.5Z"', '"2024-01-31T00:00:00+01:00"'], ['"2024-01-31"']),
        ({"type": "string", "format": "ipv4"}, ['"1.22.133.255"'], ['"1.2.3"', '"256.1.1.1"', '"01.1.1.1"']),
        (_NODE, ['{"v":1,"next":{"v":2,"next":null}}'], ['{"v":1}', '{"v":1,"next":3}']),
        (_TAGGED, ['{"k":"a"}', '{"k":"b","n":3}', '"s"', "null"], ['{"k":"a","n":3}', '{"k":"c"}']),
        ({"type": "array", "items": {"type": ["integer", "null"]}, "minItems": 1, "maxItems": 3}, ["[1]", "[1, null,3]"], ["[]", "[1,1,1,1]"]),
        ({"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}]}, ["[1,true]"], ["[1]", "[1,true,1]"]),
        ({"type": "array", "maxItems": 0}, ["[]", "[ ]"], ["[1]"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"a":1,"b":2}'], ['{"a":"x"}']),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a":1}']),
        ({"properties": {"a": {}}, "required": ["a", "b"]}, ['{"a":[],"b":{}}'], ['{"a":1}']),
        ({}, ["1", '"x"', "[{}]", "null"], ["", "nul"]),
        ({"const": {"a": [1, 2.5, None]}}, ['{"a":[1,2.5,null]}'], ['{"a":[1,2.5]}']),
        ({"type": "string", "enum": ["a", 1, "b"]}, ['"a"', '"b"'], ["1"]),
        ({"anyOf": [{"type": "boolean"}, {"allOf": [{"type": "null"}]}]}, ["true", "null"], ["0"]),
        ({"type": "integer", "format": "int64", "title": "n", "description": "d", "default": 1}, ["5"], ["5.5"]),
    ],
)  # fmt: skip
def test_what_a_schema_allows(schema: Any, allowed: list[str], refused: list[str]) -> None:
    grammar = Gbnf(schema_grammar(schema, "schema"))
    assert [text for text in allowed if not grammar.allows(text)] == []
    assert [text for text in refused if grammar.allows(text)] == []


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "patternProperties": {"a": {}}}, "schema.patternProperties"),
        ({"not": {}}, "schema.not"),
        ({"type": "string", "nullable": True}, "schema.nullable"),
        ({"properties": {"a": {"type": "text"}}}, "schema.properties.a.type"),
        ({"properties": {"a": {"items": [1]}}}, "schema.properties.a.items"),
        ({"properties": {"a": 3}}, "schema.properties.a"),
        ({"properties": {"\ud800": False}}, "schema.properties.'\\ud800'"),
        ({"required": [1]}, "schema.required"),
        ({"required": ["a"], "additionalProperties": False}, "schema.required"),
        ({"type": "object", "minProperties": 1}, "schema.minProperties"),
        ({"type": "object", "maxProperties": 1}, "schema.maxProperties"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "schema.maxItems"),
        ({"type": "array", "minItems": -1}, "schema.minItems"),
        ({"type": "array", "minItems": True}, "schema.minItems"),
        ({"type": "array", "minItems": 1, "items": False}, "schema.minItems"),
        ({"type": "array", "prefixItems": [{}], "minItems": 2}, "schema.minItems"),
        ({"type": "string", "minLength": 1, "pattern": "a"}, "schema.minLength"),
        ({"type": "string", "format": "email"}, "schema.format"),
        ({"type": "string", "pattern": "(?=a)"}, "schema.pattern"),
        ({"type": "string", "pattern": "(a)\\1"}, "schema.pattern"),
        ({"type": "string", "pattern": "\\bword"}, "schema.pattern"),
        ({"type": "string", "pattern": "[z-a]"}, "schema.pattern"),
        ({"type": "string", "pattern": "a{3,1}"}, "schema.pattern"),
        ({"type": "string", "pattern": "("}, "schema.pattern"),
        ({"type": "string", "pattern": "a)"}, "schema.pattern"),
        ({"type": "string", "pattern": "a^b"}, "schema.pattern"),
        ({"type": "string", "pattern": "*"}, "schema.pattern"),
        ({"type": "string", "pattern": "\\"}, "schema.pattern"),
        ({"type": "string", "pattern": "[\\d-z]"}, "schema.pattern"),
        ({"type": "string", "pattern": "[^\\d\\D]"}, "schema.pattern"),
        ({"type": "string", "pattern": 3}, "schema.pattern"),
        ({"type": "number", "minimum": 0.5}, "schema.minimum"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "schema"),
        ({"type": "integer", "minimum": 10**18}, "schema"),
        ({"type": "number", "multipleOf": 2}, "schema.multipleOf"),
        ({"type": "integer", "format": "int32"}, "schema.format"),
        ({"type": "string", "enum": [1]}, "schema.enum"),
        ({"enum": []}, "schema.enum"),
        ({"enum": list(range(1001))}, "schema.enum"),
        ({"anyOf": []}, "schema.anyOf"),
        ({"anyOf": [{}] * 33}, "schema.anyOf"),
        ({"anyOf": [{}], "type": "string"}, "schema.type"),
        ({"allOf": [{}, {}]}, "schema.allOf"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "schema.oneOf[1]"),
        ({"oneOf": [{"const": 1}, {"enum": [1.0, 2]}]}, "schema.oneOf[1]"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "schema.oneOf[1]"),
        ({"$ref": "https://example.com/schema"}, "schema.$ref"),
        ({"$ref": "#/nowhere"}, "schema.$ref"),
        ({"$ref": "#", "type": "string"}, "schema.type"),
        ({"$ref": "#"}, "schema"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "schema"),
        ({"properties": {"a": False}}, "schema.properties.a"),
    ],
)
def test_what_cannot_be_said_exactly_is_refused_where_it_stands(schema: Any, path: str) -> None:
    with pytest.raises(SchemaError) as caught:
        schema_grammar(schema, "schema")
    assert caught.value.path == path


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _doubling(levels: int) -> dict[str, Any]:
    names: dict[str, Any] = {
        f"d{level}": {"type": "array", "items": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 30}}
        for level in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": names | {f"d{levels}": {"type": "string"}}}


@pytest.mark.parametrize(
    "schema",
    [
        _nested(500),
        _doubling(60),
        {"enum": ["a" * size for size in range(1, 1000)]},
        {"properties": {f"p{number}": {"type": "string", "maxLength": 2000} for number in range(50)}},
        {"properties": {f"property_{number}": {} for number in range(400)}},
        {"properties": {f"p{number}": {"properties": {f"q{other}": {} for other in range(90)}} for number in range(90)}},
        {"type": "string", "pattern": "((a{0,2000}){0,2000}){0,2000}"},
        {"type": "string", "pattern": "((a{1,2000}){1,2000}){1,2000}"},
        {"type": "string", "pattern": "(a*)*"},
        {"type": "string", "pattern": "(" * 1999},
        {"type": "string", "pattern": "a" * 10**6},
        {"type": "string", "maxLength": 10**17},
        {"type": "array", "maxItems": 10**17},
        {"anyOf": [{"anyOf": [{"type": "string", "pattern": f"{a}{b}"} for a in range(30)]} for b in range(30)]},
    ],
)  # fmt: skip
def test_bombs_are_refused_soon(schema: Any) -> None:
    started = time.process_time()
    with pytest.raises(SchemaError):
        schema_grammar(schema, "schema")
    # A bound against what grows without one, not a measurement.
    assert time.process_time() - started < 5


def test_white_space_ends() -> None:
    grammar = Gbnf(json_object_grammar())
    assert grammar.allows('{\n    "a": [\n        1, 2\n    ]\n}')
    assert not grammar.allows('{  "a":1}')
    assert not grammar.allows('{\n\n"a":1}')
    assert not grammar.allows('{"a":1}\n')
    assert not grammar.allows('{"a":\n1}')
    assert not grammar.allows(" {}")


def test_several_schemas_in_one_grammar() -> None:
    compiler = SchemaCompiler()
    first = compiler.compile({"$ref": "#/$defs/x", "$defs": {"x": {"const": 1}}}, "a")
    second = compiler.compile({"$ref": "#/$defs/x", "$defs": {"x": {"const": 2}}}, "b")
    assert Gbnf(compiler.finish(first, "a")).allows("1")
    assert Gbnf(compiler.finish(second, "b")).allows("2")

"""The field `response_format`: text, any JSON object, or JSON valid against a schema."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from edgeserve.calls import JsonAnswer
from edgeserve.http.fields import Fields, Kinds, take_name

FORM: Final[Kinds] = MappingProxyType({"type": str, "json_schema": dict})
JSON_SCHEMA: Final[Kinds] = MappingProxyType(
    {"name": str, "description": str, "strict": bool, "schema": dict}
)


def parse_response_format(fields: Fields) -> JsonAnswer | None:
    """Check `response_format`.

    A schema is always followed to the letter, so `strict` makes no difference.

    Returns:
        What the answer is, None for text.
    """
    given = fields.typed("response_format", dict)
    if given is None:
        return None
    form = Fields(given, FORM, fields.name("response_format"))
    kind = form.text("type")
    inner = form.typed("json_schema", dict)
    form.finish()
    if inner is not None and kind in {"text", "json_object"}:
        raise form.fault("json_schema", "is only allowed when 'type' is 'json_schema'", code="invalid_value")
    match kind:
        case "text":
            return None
        case "json_object":
            return JsonAnswer(schema=None, schema_field=form.name("type"))
        case "json_schema":
            return _parse_json_schema(form, inner)
        case _:
            raise form.fault("type", "must be 'text', 'json_object' or 'json_schema'", code="invalid_value")


def _parse_json_schema(form: Fields, inner: dict[str, object] | None) -> JsonAnswer:
    if inner is None:
        raise form.fault("json_schema", "is missing", code="missing_required_parameter")
    fields = Fields(inner, JSON_SCHEMA, form.name("json_schema"))
    take_name(fields)
    fields.text("description")
    fields.flag("strict")
    schema = fields.typed("schema", dict)
    fields.finish()
    if schema is None:
        raise fields.fault("schema", "is missing", code="missing_required_parameter")
    return JsonAnswer(schema=schema, schema_field=fields.name("schema"))

"""The fields `tools`, `tool_choice` and `parallel_tool_calls`: what the model may or must call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from edgeserve.calls import Function, Tools
from edgeserve.http.fields import Fields, Kinds, is_unicode, take_name

MOST_TOOLS: Final = 128  # OpenAI's bound
_NO_PARAMETERS: Final[Mapping[str, Any]] = MappingProxyType(
    {"type": "object", "properties": {}, "additionalProperties": False}
)
# Of the body, of a tool in it, of the tool's function, of `tool_choice` and of the function named there.
TOOL_FIELDS: Final[Kinds] = MappingProxyType(
    {"tools": list, "tool_choice": object, "parallel_tool_calls": bool}
)
TOOL: Final[Kinds] = MappingProxyType({"type": str, "function": dict})
FUNCTION: Final[Kinds] = MappingProxyType(
    {"name": str, "description": str, "parameters": dict, "strict": bool}
)
CHOICE: Final[Kinds] = MappingProxyType({"type": str, "function": dict})
CHOSEN: Final[Kinds] = MappingProxyType({"name": str})


def parse_tools(fields: Fields) -> Tools | None:
    """Check what may be called.

    Returns:
        None where there are no tools, or none of them may be called: then the model is not told of them either.
    """
    given = fields.typed("tools", list) or []
    choice = fields.take("tool_choice")
    is_parallel = fields.typed("parallel_tool_calls", bool)
    if len(given) > MOST_TOOLS:
        raise fields.fault("tools", f"must hold at most {MOST_TOOLS} tools", code="out_of_range")
    tools = tuple(_parse_tool(fields, item, f"tools[{number}]") for number, item in enumerate(given))
    functions = tuple(function for function, _, _ in tools)
    if len({function.name for function in functions}) < len(functions):
        raise fields.fault("tools", "names a function twice", code="invalid_value")
    if not tools:
        for key, is_asked in (
            ("tool_choice", choice not in (None, "none")),
            ("parallel_tool_calls", is_parallel is not None),
        ):
            if is_asked:
                raise fields.fault(key, "is only allowed when 'tools' are given", code="invalid_value")
        return None
    chosen = _parse_choice(fields, choice, functions)
    if not chosen:
        return None
    is_named = isinstance(choice, dict)
    return Tools(
        definitions=tuple(definition for _, definition, _ in tools),
        characters=sum(characters for _, _, characters in tools),
        callable=chosen,
        must_call=is_named or choice == "required",
        is_parallel=is_parallel is not False and not is_named,
    )


def _parse_choice(fields: Fields, choice: object, functions: Sequence[Function]) -> tuple[Function, ...]:
    """Return the functions that may be called."""
    if choice == "none":
        return ()
    if choice in (None, "auto", "required"):
        return tuple(functions)
    if not isinstance(choice, dict):
        raise fields.fault(
            "tool_choice",
            "must be 'none', 'auto', 'required' or a function's name in an object",
            code="invalid_value",
        )
    form = Fields(choice, CHOICE, fields.name("tool_choice"))
    if form.text("type") != "function":
        raise form.fault("type", "must be 'function'", code="unsupported_parameter")
    inner = form.typed("function", dict)
    form.finish()
    named = Fields(inner or {}, CHOSEN, form.name("function"))
    name = named.text("name")
    named.finish()
    chosen = tuple(function for function in functions if function.name == name)
    if not chosen:
        raise named.fault("name", "is none of the functions in 'tools'", code="invalid_value")
    return chosen


def _parse_tool(fields: Fields, item: object, path: str) -> tuple[Function, Mapping[str, Any], int]:
    """Return the function, its definition as it is shown to the model, and the length of that as JSON."""
    if not isinstance(item, dict):
        raise fields.fault(path, "must be an object", code="invalid_type")
    tool = Fields(item, TOOL, path)
    if tool.text("type") != "function":
        raise tool.fault("type", "must be 'function'", code="unsupported_parameter")
    inner = tool.typed("function", dict)
    tool.finish()
    if inner is None:
        raise tool.fault("function", "is missing", code="missing_required_parameter")
    function = Fields(inner, FUNCTION, tool.name("function"))
    name = take_name(function)
    description = function.text("description")
    parameters = _parse_parameters(function)
    is_strict = function.flag("strict")
    function.finish()
    shown: dict[str, Any] = {"name": name, "parameters": dict(parameters)}
    if description is not None:
        shown = {"name": name, "description": description, "parameters": dict(parameters)}
    parsed = Function(
        name=name, parameters=parameters, is_strict=is_strict, field=function.name("parameters")
    )
    definition = {"type": "function", "function": shown}
    text = json_text(definition)
    if text is None:
        raise function.fault("parameters", "cannot be written as text", code="invalid_text")
    return parsed, definition, len(text)


def _parse_parameters(function: Fields) -> Mapping[str, Any]:
    """Return the schema of the arguments; without one a function takes none."""
    parameters = function.typed("parameters", dict)
    if not parameters:
        return dict(_NO_PARAMETERS)
    if parameters.get("type") != "object":
        raise function.fault("parameters", "must be a schema whose 'type' is 'object'", code="invalid_value")
    return parameters


def json_text(value: object) -> str | None:
    """Write a parsed JSON value; None where UTF-8 cannot hold it: half of a surrogate pair, or nested too deeply."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return None
    return text if is_unicode(text) else None

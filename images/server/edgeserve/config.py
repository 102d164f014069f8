"""The configuration: `runtime.json`, then the environment (`EDGE_*`), then flags, decoded into `edgeserve.settings`."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from edgeserve.settings import PREFIX, EngineSettings, Runtime, Setting, settings

RUNTIME_PATH: Final = "/etc/edgebuild/runtime.json"
RUNTIME_VARIABLE: Final = "EDGE_RUNTIME"

_T = TypeVar("_T")


class ConfigError(Exception):
    """The configuration cannot be used; carries every fault found, each with the key and where its value came from."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def load_config(environment: Mapping[str, str], flags: Mapping[str, str]) -> Runtime:
    """Read the file, lay the environment and the flags over it, and check the whole.

    Args:
        environment: The process environment; variables that start with `EDGE_` must be known.
        flags: Values of flags by environment variable name.

    Raises:
        ConfigError: Anything is unknown, missing, of the wrong type, out of range or contradictory.
    """
    path = flags.get(RUNTIME_VARIABLE) or environment.get(RUNTIME_VARIABLE) or RUNTIME_PATH
    document = _read(path)
    faults: list[str] = []
    origin: dict[tuple[str, ...], str] = {}
    overlays = (
        (
            {name: value for name, value in environment.items() if name.startswith(PREFIX)},
            lambda setting: setting.variable,
        ),
        (flags, lambda setting: setting.flag),
    )
    for values, label in overlays:
        _overlay(document, values, label, origin, faults)
    runtime = _Decoder(path=path, origin=origin, faults=faults).section(Runtime, document, ())
    if runtime is not None and not faults:
        faults.extend(_contradictions(runtime))
    if faults or runtime is None:
        raise ConfigError(tuple(faults))
    return runtime


def _read(path: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError((f"{path}: cannot be read: {error.strerror or error}",)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError((f"{path}: not a JSON document: {error}",)) from error
    if not isinstance(document, dict):
        raise ConfigError((f"{path}: not a JSON object",))
    return document


def _overlay(
    document: dict[str, Any],
    values: Mapping[str, str],
    label: Callable[[Setting], str],
    origin: dict[tuple[str, ...], str],
    faults: list[str],
) -> None:
    """Write the texts in `values` over the document, as the types that their keys declare."""
    known = {setting.variable: setting for setting in settings() if setting.variable}
    for name, text in values.items():
        if name == RUNTIME_VARIABLE:
            continue
        setting = known.get(name)
        if setting is None:
            faults.append(f"{name}: unknown environment variable{_suggestion(name, known)}")
            continue
        target = document
        for part in setting.path[:-1]:
            inner = target.setdefault(part, {})
            if not isinstance(inner, dict):
                break  # the decoder reports the section of the wrong type
            target = inner
        else:
            target[setting.path[-1]] = _parsed(setting, text)
            origin[setting.path] = label(setting)


def _parsed(setting: Setting, text: str) -> object:
    """Give the text the type of its key; what does not parse stays text, for the decoder to refuse."""
    if setting.field.metadata["kind"] == "integer":
        digits = text.strip()
        return int(digits) if digits.removeprefix("-").isdecimal() and len(digits) < 20 else text
    if setting.field.metadata["kind"] == "paths":
        return [part for part in text.split(":") if part]
    if setting.field.metadata["kind"] == "flag":
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    return text


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _integer_complaint(field: dataclasses.Field[Any], value: object) -> str:
    low, high = field.metadata["low"], field.metadata["high"]
    if type(value) is not int:
        return f"be a whole number, not {_shown(value)}"
    return "" if low <= value <= high else f"be from {low} to {high}, not {value}"


def _flag_complaint(_field: dataclasses.Field[Any], value: object) -> str:
    return "" if type(value) is bool else f"be true or false, not {_shown(value)}"


def _paths_complaint(_field: dataclasses.Field[Any], value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return ""
    return f"be a list of paths, not {_shown(value)}"


def _text_complaint(field: dataclasses.Field[Any], value: object) -> str:
    choices = field.metadata["choices"]
    if not isinstance(value, str):
        return f"be text, not {_shown(value)}"
    if choices and value not in choices:
        return f"be one of {', '.join(choices)}, not {_shown(value)}"
    return "not be empty" if not value and field.default is dataclasses.MISSING else ""


# What a value of each kind must be, in words that follow "must"; empty where it is.
_COMPLAINTS: Final[Mapping[str, Callable[[dataclasses.Field[Any], object], str]]] = MappingProxyType(
    {
        "integer": _integer_complaint,
        "flag": _flag_complaint,
        "paths": _paths_complaint,
        "text": _text_complaint,
    }
)


class _Decoder:
    """Turns the document into dataclasses and gathers every fault on the way."""

    def __init__(self, *, path: str, origin: Mapping[tuple[str, ...], str], faults: list[str]) -> None:
        self._path = path
        self._origin = origin
        self._faults = faults

    def section(self, kind: type[_T], document: object, above: tuple[str, ...]) -> _T | None:
        """Decode one section; None when anything in it is wrong."""
        if not isinstance(document, dict):
            self._fault(above, "must be an object")
            return None
        fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        before = len(self._faults)
        for name in document:
            if name not in fields:
                self._fault((*above, name), f"unknown key{_suggestion(name, fields)}")
        values: dict[str, object] = {}
        for name, field in fields.items():
            here = (*above, name)
            if name not in document:
                if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                    self._fault(here, "missing")
                continue
            if field.metadata["kind"] == "section":
                values[name] = self.section(field.metadata["section"], document[name], here)
            else:
                values[name] = self._leaf(field, document[name], here)
        return None if len(self._faults) > before else kind(**values)

    def _leaf(self, field: dataclasses.Field[Any], value: object, here: tuple[str, ...]) -> object:
        complaint = _COMPLAINTS[field.metadata["kind"]](field, value)
        if complaint:
            self._fault(here, f"must {complaint}")
        return tuple(value) if isinstance(value, list) else value

    def _fault(self, here: tuple[str, ...], what: str) -> None:
        key = ".".join(here) or "document"
        origin = self._origin.get(here)
        self._faults.append(f"{origin} ({key}): {what}" if origin else f"{self._path}: {key}: {what}")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _contradictions(runtime: Runtime) -> Iterator[str]:
    limits, context = runtime.server.limits, runtime.engine.context_tokens
    # A text to embed may fill the context; that an answer needs room is seen to when the model is known (prompts.py).
    if limits.prompt_tokens > context:
        yield f"server.limits.prompt_tokens: {limits.prompt_tokens} is more than {context} context tokens"
    yield from _engine_contradictions(runtime.engine)
    if 0 < limits.window_tokens < limits.window_stride_tokens:
        yield f"server.limits.window_stride_tokens: {limits.window_stride_tokens} would skip text between windows of {limits.window_tokens} tokens"
    if limits.output_tokens >= context and runtime.engine.past_context == "stop":
        yield f"server.limits.output_tokens: {limits.output_tokens} leaves no room for a prompt in {context} context tokens"
    server = runtime.server
    if server.grpc.enabled and server.port == server.grpc.port != 0:
        yield f"server.grpc.port: {server.grpc.port} is the port of HTTP too"
    if server.grpc.enabled and server.access.tls_minimum != "1.2":
        yield f"server.access.tls_minimum: gRPC speaks TLS 1.2 too, so {server.access.tls_minimum} cannot be kept with server.grpc.enabled"
    if runtime.engine.batch_tokens < runtime.engine.slots:
        yield f"engine.batch_tokens: {runtime.engine.batch_tokens} is less than one token for each of {runtime.engine.slots} slots"
    audit = runtime.server.audit
    if audit.enabled and not runtime.server.state_dir:
        yield "server.audit.enabled: the audit log needs a folder, server.state_dir, and there is none"
    if audit.total_bytes < 2 * audit.file_bytes:
        yield f"server.audit.total_bytes: {audit.total_bytes} is less than two files of {audit.file_bytes}"


def _engine_contradictions(engine: EngineSettings) -> Iterator[str]:
    if engine.flash_attention == "off" and engine.kv_type != "f16":
        yield f"engine.flash_attention: off, but a cache of {engine.kv_type} needs it"
    if engine.past_context == "shift" and 2 * engine.keep_tokens >= engine.context_tokens:
        yield f"engine.keep_tokens: {engine.keep_tokens} is not less than half of {engine.context_tokens} context tokens"


def render_table() -> str:
    """Render the declaration as a Markdown table."""
    lines = [
        "| Key in runtime.json | Environment | Flag | Default | Allowed | Meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for setting in settings():
        field, metadata = setting.field, setting.field.metadata
        default = "required" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"
        if metadata["kind"] == "integer":
            low, high = metadata["low"], metadata["high"]
            allowed = f"{low}" if low == high else f"{low} to {high}"
        elif metadata["kind"] == "paths":
            allowed = "paths"
        elif metadata["kind"] == "flag":
            allowed = "true, false"
        else:
            allowed = ", ".join(metadata["choices"]) or "text"
        variable, flag = (f"`{text}`" if text else "" for text in (setting.variable, setting.flag))
        lines.append(f"| `{setting.key}` | {variable} | {flag} | {default} | {allowed} | {metadata['doc']} |")
    return "\n".join(lines) + "\n"

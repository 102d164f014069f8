"""The configuration: `runtime.json`, then the environment (`EDGE_*`), then flags; every key declared once, here.

The dataclasses below are the only declaration: decoding, the environment's names, the flags and the documented
table (`edgeserve config --table`) all come from their metadata.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

RUNTIME_PATH: Final = "/etc/edgebuild/runtime.json"
RUNTIME_VARIABLE: Final = "EDGE_RUNTIME"
SCHEMA_VERSION: Final = 1
KV_TYPES: Final = ("f16", "q8_0", "q4_0")
_PREFIX: Final = "EDGE_"

_T = TypeVar("_T")


class ConfigError(Exception):
    """The configuration cannot be used; carries every fault found, each with the key and where its value came from."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def _integer(default: int | None, doc: str, *, low: int, high: int, env: str = "") -> Any:
    return _setting(default, doc, kind="integer", low=low, high=high, env=env)


def _text(default: str | None, doc: str, *, choices: tuple[str, ...] = (), env: str = "") -> Any:
    return _setting(default, doc, kind="text", choices=choices, env=env)


def _paths(doc: str, *, env: str = "") -> Any:
    return _setting(None, doc, kind="paths", env=env)


def _setting(default: object, doc: str, **metadata: object) -> Any:
    given = {} if default is None else {"default": default}
    return dataclasses.field(metadata={"doc": doc, **metadata}, **given)  # type: ignore[call-overload]


def _section(kind: type[Any], doc: str) -> Any:
    required = any(item.default is item.default_factory for item in dataclasses.fields(kind))
    given = {} if required else {"default_factory": kind}
    return dataclasses.field(metadata={"doc": doc, "kind": "section", "section": kind}, **given)  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model is served."""

    name: str = _text(None, "Name that clients give as `model`", env="EDGE_MODEL_NAME")
    files: tuple[str, ...] = _paths(
        "GGUF files of the model, in order; colon-separated outside the file", env="EDGE_MODEL_FILES"
    )
    card: str = _text("", "Document with source, digests and quality of the model; empty: none")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How the model runs."""

    name: str = _text("llama.cpp", "Inference engine", choices=("llama.cpp",))
    library_dir: str = _text(
        "", "Folder of libllama.so; empty: the one beside the module llama_cpp", env="EDGE_LIBRARY_DIR"
    )
    context_tokens: int = _integer(
        2048,
        "Longest prompt and answer together, in tokens, of one slot",
        low=64,
        high=1 << 20,
        env="EDGE_CONTEXT_TOKENS",
    )
    batch_tokens: int = _integer(
        512, "Most tokens in one forward pass", low=16, high=16384, env="EDGE_BATCH_TOKENS"
    )
    slots: int = _integer(1, "Requests generated at the same time", low=1, high=64, env="EDGE_SLOTS")
    threads: int = _integer(
        0, "Computing threads; 0: one per usable core", low=0, high=512, env="EDGE_THREADS"
    )
    kv_type: str = _text("f16", "Element type of the key/value cache", choices=KV_TYPES, env="EDGE_KV_TYPE")
    cpu_variant: str = _text(
        "", "CPU variant that the profile expects; another one loaded is a warning; empty: any"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What one client may ask for."""

    body_bytes: int = _integer(1 << 20, "Largest request body", low=1024, high=1 << 28, env="EDGE_BODY_BYTES")
    prompt_tokens: int = _integer(1536, "Longest prompt", low=1, high=1 << 20, env="EDGE_PROMPT_TOKENS")
    output_tokens: int = _integer(512, "Longest answer", low=1, high=1 << 20, env="EDGE_OUTPUT_TOKENS")
    request_s: int = _integer(
        120,
        "Longest time of one request from its body to its last byte, in seconds",
        low=1,
        high=86400,
        env="EDGE_REQUEST_S",
    )
    queue: int = _integer(16, "Requests that may wait for a slot", low=0, high=4096, env="EDGE_QUEUE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where and for how long the server listens."""

    host: str = _text("0.0.0.0", "Address to listen on", env="EDGE_HOST")  # noqa: S104 - a container's own network
    port: int = _integer(8080, "TCP port; 0: any free one", low=0, high=65535, env="EDGE_PORT")
    drain_s: int = _integer(
        5,
        "Time that running requests get to finish after SIGTERM, in seconds",
        low=0,
        high=3600,
        env="EDGE_DRAIN_S",
    )
    limits: LimitSettings = _section(LimitSettings, "What one client may ask for")  # noqa: RUF009 - makes a field


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """The plan's figures, for the log."""

    need_bytes: int = _integer(
        0, "Memory that the plan says model, cache and server need", low=0, high=1 << 62
    )
    budget_bytes: int = _integer(0, "Memory that the plan leaves them; 0: not planned", low=0, high=1 << 62)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The whole configuration, checked."""

    schema_version: int = _integer(None, "Version of this document", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
    profile: str = _text("", "Device profile that the image was built for")
    model: ModelSettings = _section(ModelSettings, "Which model is served")  # noqa: RUF009 - makes a field
    engine: EngineSettings = _section(EngineSettings, "How the model runs")  # noqa: RUF009 - makes a field
    server: ServerSettings = _section(ServerSettings, "Where and for how long the server listens")  # noqa: RUF009 - makes a field
    memory: MemorySettings = _section(MemorySettings, "The plan's figures")  # noqa: RUF009 - makes a field


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One leaf of the declaration."""

    path: tuple[str, ...]
    field: dataclasses.Field[Any]

    @property
    def key(self) -> str:
        """The key as written in messages, such as `server.limits.queue`."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable, or an empty string when the key is for the file alone."""
        return str(self.field.metadata.get("env", ""))

    @property
    def flag(self) -> str:
        """The flag of `edgeserve serve`, or an empty string."""
        return "--" + self.variable[len(_PREFIX) :].lower().replace("_", "-") if self.variable else ""


def settings(kind: type[Any] = Runtime, above: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Walk the declaration's leaves in order."""
    for field in dataclasses.fields(kind):
        path = (*above, field.name)
        if field.metadata["kind"] == "section":
            yield from settings(field.metadata["section"], path)
        else:
            yield Setting(path=path, field=field)


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
            {name: value for name, value in environment.items() if name.startswith(_PREFIX)},
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
    return text


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


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
        metadata = field.metadata
        if metadata["kind"] == "integer":
            if type(value) is not int:
                self._fault(here, f"must be a whole number, not {_shown(value)}")
            elif not metadata["low"] <= value <= metadata["high"]:
                self._fault(here, f"must be from {metadata['low']} to {metadata['high']}, not {value}")
        elif metadata["kind"] == "paths":
            if (
                not isinstance(value, list)
                or not value
                or not all(isinstance(item, str) and item for item in value)
            ):
                self._fault(here, f"must be a list of paths, not {_shown(value)}")
            else:
                return tuple(value)
        elif not isinstance(value, str):
            self._fault(here, f"must be text, not {_shown(value)}")
        elif metadata["choices"] and value not in metadata["choices"]:
            self._fault(here, f"must be one of {', '.join(metadata['choices'])}, not {_shown(value)}")
        elif not value and field.default is dataclasses.MISSING:
            self._fault(here, "must not be empty")
        return value

    def _fault(self, here: tuple[str, ...], what: str) -> None:
        key = ".".join(here) or "document"
        origin = self._origin.get(here)
        self._faults.append(f"{origin} ({key}): {what}" if origin else f"{self._path}: {key}: {what}")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _contradictions(runtime: Runtime) -> Iterator[str]:
    limits, context = runtime.server.limits, runtime.engine.context_tokens
    if limits.prompt_tokens >= context:
        yield f"server.limits.prompt_tokens: {limits.prompt_tokens} leaves no room for an answer in {context} context tokens"
    if limits.output_tokens >= context:
        yield f"server.limits.output_tokens: {limits.output_tokens} leaves no room for a prompt in {context} context tokens"
    if runtime.engine.batch_tokens < runtime.engine.slots:
        yield f"engine.batch_tokens: {runtime.engine.batch_tokens} is less than one token for each of {runtime.engine.slots} slots"


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
        else:
            allowed = ", ".join(metadata["choices"]) or "text"
        variable, flag = (f"`{text}`" if text else "" for text in (setting.variable, setting.flag))
        lines.append(f"| `{setting.key}` | {variable} | {flag} | {default} | {allowed} | {metadata['doc']} |")
    return "\n".join(lines) + "\n"

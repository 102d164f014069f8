"""The settings: every key of the configuration, declared once, here.

The dataclasses below are the only declaration: decoding, the environment's names, the flags and the documented
table (`edgeserve config --table`) all come from their metadata.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

SCHEMA_VERSION: Final = 1
KV_TYPES: Final = ("f16", "q8_0", "q4_0")
MODEL_CHECKS: Final = ("always", "first_start", "never")
PREFIX: Final = "EDGE_"
# Where a container's owner mounts what must not be in an image; used when it is there.
TLS_FOLDER: Final = "/run/edge/tls"
KEYS_FILE: Final = "/run/edge/keys/keys"


def _integer(default: int | None, doc: str, *, low: int, high: int, env: str = "") -> Any:
    return _setting(default, doc, kind="integer", low=low, high=high, env=env)


def _text(default: str | None, doc: str, *, choices: tuple[str, ...] = (), env: str = "") -> Any:
    return _setting(default, doc, kind="text", choices=choices, env=env)


def _flag(*, default: bool, doc: str, env: str = "") -> Any:
    return _setting(default, doc, kind="flag", env=env)


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
    check: str = _text(
        "first_start",
        "When the files' digests are compared with the card's; a seal in the state folder remembers a first start, without that folder it is always",
        choices=MODEL_CHECKS,
        env="EDGE_MODEL_CHECK",
    )


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
        0,
        "Computing threads, never more than usable cores; 0: one per usable core",
        low=0,
        high=512,
        env="EDGE_THREADS",
    )
    batch_threads: int = _integer(
        0,
        "Computing threads of passes of more than one token; 0: as many as `threads`",
        low=0,
        high=512,
        env="EDGE_BATCH_THREADS",
    )
    kv_type: str = _text("f16", "Element type of the key/value cache", choices=KV_TYPES, env="EDGE_KV_TYPE")
    flash_attention: str = _text(
        "auto",
        "Flash attention; a quantised cache needs it",
        choices=("auto", "on", "off"),
        env="EDGE_FLASH_ATTENTION",
    )
    mmap: bool = _flag(
        default=True, doc="Map the model file instead of reading it into memory", env="EDGE_MMAP"
    )
    mlock: bool = _flag(
        default=False,
        doc="Keep weights and cache from being swapped out; RLIMIT_MEMLOCK must allow it. With `mmap`, weights that the engine repacks then stay in memory twice",
        env="EDGE_MLOCK",
    )
    past_context: str = _text(
        "stop",
        "What an answer does at the end of the context: stop, or shift, which forgets the older half of what follows the first tokens",
        choices=("stop", "shift"),
        env="EDGE_PAST_CONTEXT",
    )
    keep_tokens: int = _integer(
        32,
        "Tokens at the start of the prompt that a shift keeps; less than half the context",
        low=1,
        high=1 << 20,
        env="EDGE_KEEP_TOKENS",
    )
    cpu_variant: str = _text(
        "", "CPU variant that the profile expects; another one loaded is a warning; empty: any"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What one client may ask for."""

    body_bytes: int = _integer(1 << 20, "Largest request body", low=1024, high=1 << 28, env="EDGE_BODY_BYTES")
    prompt_tokens: int = _integer(1536, "Longest prompt", low=1, high=1 << 20, env="EDGE_PROMPT_TOKENS")
    output_tokens: int = _integer(512, "Longest answer", low=1, high=1 << 20, env="EDGE_OUTPUT_TOKENS")
    over_long: str = _text(
        "refuse",
        "What becomes of a prompt that is too long: refuse, or window, which answers about one overlapping window of it after the other",
        choices=("refuse", "window"),
        env="EDGE_OVER_LONG",
    )
    window_tokens: int = _integer(
        0,
        "Text in one window; 0: as much as leaves a quarter of the context to the answer",
        low=0,
        high=1 << 20,
        env="EDGE_WINDOW_TOKENS",
    )
    window_stride_tokens: int = _integer(
        0,
        "How much later in the text each next window starts; 0: three quarters of a window, so that a quarter overlaps",
        low=0,
        high=1 << 20,
        env="EDGE_WINDOW_STRIDE_TOKENS",
    )
    windows: int = _integer(
        16, "Most windows of one request; a longer prompt is refused", low=1, high=1024, env="EDGE_WINDOWS"
    )
    request_s: int = _integer(
        120,
        "Longest time of one request from its body to its last byte, in seconds",
        low=1,
        high=86400,
        env="EDGE_REQUEST_S",
    )
    first_token_s: int = _integer(
        0,
        "Longest time of one request to its first token, in seconds; 0: as long as the whole may take",
        low=0,
        high=86400,
        env="EDGE_FIRST_TOKEN_S",
    )
    queue: int = _integer(16, "Requests that may wait for a slot", low=0, high=4096, env="EDGE_QUEUE")
    client_requests: int = _integer(
        0,
        "Requests of one client at the same time, waiting ones included; 0: as many as there are places",
        low=0,
        high=4096,
        env="EDGE_CLIENT_REQUESTS",
    )
    header_s: int = _integer(
        10,
        "Longest time of a TLS handshake and of a request's header, in seconds",
        low=1,
        high=3600,
        env="EDGE_HEADER_S",
    )
    body_s: int = _integer(
        30,
        "Longest time that a request's body may take to come, in seconds",
        low=1,
        high=3600,
        env="EDGE_BODY_S",
    )
    idle_s: int = _integer(
        15,
        "Longest time between two requests on a connection, in seconds",
        low=1,
        high=3600,
        env="EDGE_IDLE_S",
    )
    unread_s: int = _integer(
        30,
        "Longest time that a client may leave what is sent to it unread, in seconds",
        low=1,
        high=3600,
        env="EDGE_UNREAD_S",
    )
    connections: int = _integer(
        256, "Connections open at the same time", low=1, high=65536, env="EDGE_CONNECTIONS"
    )
    connections_per_address: int = _integer(
        64,
        "Connections open at the same time from one IPv4 address or IPv6 /64",
        low=1,
        high=65536,
        env="EDGE_CONNECTIONS_PER_ADDRESS",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Who may use the server."""

    tls_folder: str = _text(
        TLS_FOLDER,
        "Folder of tls.crt, tls.key and, for mutual TLS, ca.crt; no TLS while it is not there",
        env="EDGE_TLS_FOLDER",
    )
    tls_minimum: str = _text("1.2", "Lowest version of TLS", choices=("1.2", "1.3"), env="EDGE_TLS_MINIMUM")
    keys_file: str = _text(
        KEYS_FILE,
        "Hashes of the keys that clients need; none are needed while the file's folder is not there",
        env="EDGE_KEYS_FILE",
    )
    require_tls: bool = _flag(default=False, doc="Do not start without TLS", env="EDGE_REQUIRE_TLS")
    require_certificate: bool = _flag(
        default=False,
        doc="Do not start without ca.crt; every client needs a certificate, with a key too",
        env="EDGE_REQUIRE_CERTIFICATE",
    )
    require_key: bool = _flag(
        default=False,
        doc="Do not start without keys; every request needs one, with a client certificate too",
        env="EDGE_REQUIRE_KEY",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """What Prometheus may read."""

    enabled: bool = _flag(default=True, doc="Whether there is a /metrics", env="EDGE_METRICS")
    open: bool = _flag(
        default=False, doc="Whether /metrics needs neither key nor certificate", env="EDGE_METRICS_OPEN"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcSettings:
    """The gRPC interface; grpcio is in images whose profile asks for it."""

    enabled: bool = _flag(default=False, doc="Whether to serve gRPC too", env="EDGE_GRPC")
    port: int = _integer(50051, "TCP port of gRPC; 0: any free one", low=0, high=65535, env="EDGE_GRPC_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """What is written down of requests, in `server.state_dir`."""

    enabled: bool = _flag(default=False, doc="Whether an audit log is kept", env="EDGE_AUDIT")
    required: bool = _flag(
        default=False,
        doc="Whether requests are refused while the audit log cannot be written",
        env="EDGE_AUDIT_REQUIRED",
    )
    prompts: bool = _flag(
        default=False, doc="Whether the log holds prompts in the clear", env="EDGE_AUDIT_PROMPTS"
    )
    sync: str = _text(
        "checkpoint",
        "What is brought to the disk at once: each line, or each checkpoint and what precedes it",
        choices=("line", "checkpoint"),
        env="EDGE_AUDIT_SYNC",
    )
    checkpoint_lines: int = _integer(
        100, "Lines after which a checkpoint is signed", low=1, high=10_000, env="EDGE_AUDIT_CHECKPOINT_LINES"
    )
    checkpoint_s: int = _integer(
        60,
        "Seconds after which a checkpoint is signed, if anything was written",
        low=1,
        high=86400,
        env="EDGE_AUDIT_CHECKPOINT_S",
    )
    file_bytes: int = _integer(
        8 << 20, "Size at which a new file is begun", low=1 << 16, high=1 << 28, env="EDGE_AUDIT_FILE_BYTES"
    )
    total_bytes: int = _integer(
        64 << 20,
        "Size of all files beyond which the oldest goes; at least twice that of one",
        low=1 << 17,
        high=1 << 40,
        env="EDGE_AUDIT_TOTAL_BYTES",
    )


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
    state_dir: str = _text(
        "",
        "Folder of what outlives a restart, a mounted volume in an image; empty: nothing is kept",
        env="EDGE_STATE_DIR",
    )
    trace: str = _text(
        "", "File for a trace in Chrome's format, of at most 64 MiB; empty: none", env="EDGE_TRACE"
    )
    access: AccessSettings = _section(AccessSettings, "Who may use the server")  # noqa: RUF009 - makes a field
    grpc: GrpcSettings = _section(GrpcSettings, "The gRPC interface")  # noqa: RUF009 - makes a field
    limits: LimitSettings = _section(LimitSettings, "What one client may ask for")  # noqa: RUF009 - makes a field
    audit: AuditSettings = _section(AuditSettings, "What is written down of requests")  # noqa: RUF009 - makes a field
    metrics: MetricsSettings = _section(MetricsSettings, "What Prometheus may read")  # noqa: RUF009 - makes a field


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """The plan's figures, compared with what there is before the model is loaded."""

    need_bytes: int = _integer(
        0, "Memory that the plan says model, cache and server need", low=0, high=1 << 62
    )
    budget_bytes: int = _integer(0, "Memory that the plan leaves them; 0: not planned", low=0, high=1 << 62)
    check: str = _text(
        "refuse",
        "What less memory than needed does: refuse to start, or warn",
        choices=("refuse", "warn"),
        env="EDGE_MEMORY_CHECK",
    )


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
        return "--" + self.variable[len(PREFIX) :].lower().replace("_", "-") if self.variable else ""


def settings(kind: type[Any] = Runtime, above: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Walk the declaration's leaves in order."""
    for field in dataclasses.fields(kind):
        path = (*above, field.name)
        if field.metadata["kind"] == "section":
            yield from settings(field.metadata["section"], path)
        else:
            yield Setting(path=path, field=field)

"""Device profiles: what a device is and what an image for it must keep to.

A profile is a YAML file. `extends` names another one (a built-in name or a path) whose values it overlays. A file is
checked whole: every fault is reported at once, with file, path and line.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from edgebuild.data import data_path
from edgebuild.documents import Kind, Located, Section, check_document, load_yaml, overlay
from edgebuild.errors import ProfileError
from edgebuild.oci.platform import Platform
from edgebuild.quantities import Share, Size, parse_switch

# Engine variants by architecture: what images/llama-cpp builds (facts of ggml/src/CMakeLists.txt).
CPU_VARIANTS = {
    "amd64": ("x64", "sse42", "haswell", "alderlake", "icelake"),
    "arm64": ("armv8.0_1", "armv8.2_2", "armv8.6_2"),
}
# llama.cpp's quantisation types that llama_model_quantize makes without an importance matrix.
Quantization = Literal[
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"
]  # fmt: skip
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

_PROFILE = Kind(name="profile", beginning="`schema_version: 1` and `name: …`")


class Cpu(Section):
    """The processor."""

    model: str = Field(
        pattern=r"^[A-Za-z0-9._+,=-]+$",
        description="qemu's name of the processor (QEMU_CPU), used to check the image",
        examples=["cortex-a72"],
    )
    variant: str = Field(
        description="Variant of the inference engine that this processor must load", examples=["armv8.0_1"]
    )
    cores: int = Field(ge=1, le=1024, description="Cores that the server may use")


class Limits(Section):
    """Hard caps of the server; a request past one is refused."""

    body: Size = Field(default=1 << 20, description="Largest request body")
    prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest prompt, in tokens; by default all of the context but one token",
    )
    output_tokens: int = Field(default=512, ge=1, description="Most tokens generated for one request")
    request_s: int = Field(default=120, ge=1, le=86400, description="Seconds after which a request is ended")
    first_token_s: int = Field(
        default=0,
        ge=0,
        le=86400,
        description="Seconds after which a request without a token is ended; 0: as long as the whole may take",
    )
    queue: int = Field(default=16, ge=0, le=4096, description="Requests that may wait for a slot")
    client_requests: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Requests of one client at the same time, waiting ones included; 0: as many as there are places",
    )
    over_long: Literal["refuse", "window"] = Field(
        default="refuse",
        description="What becomes of a prompt that is too long: refuse, or answer about one overlapping window of it after the other",
    )
    window_tokens: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="Text in one window, in tokens; 0: as much as leaves a quarter of the context to the answer",
    )
    window_stride_tokens: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="How much later in the text each next window starts, in tokens; 0: three quarters of a window",
    )
    windows: int = Field(default=16, ge=1, le=1024, description="Most windows of one request")
    connections: int = Field(default=256, ge=1, le=65536, description="Connections open at the same time")
    connections_per_address: int = Field(
        default=64, ge=1, le=65536, description="Connections open at the same time from one address"
    )
    header_s: int = Field(
        default=10, ge=1, le=3600, description="Seconds for a TLS handshake and for a request's header"
    )
    body_s: int = Field(default=30, ge=1, le=3600, description="Seconds for a request's body to come")
    idle_s: int = Field(default=15, ge=1, le=3600, description="Seconds between two requests on a connection")
    unread_s: int = Field(
        default=30, ge=1, le=3600, description="Seconds that a client may leave what is sent to it unread"
    )
    past_context: Literal["stop", "shift"] = Field(
        default="stop",
        description="What an answer does at the end of the context: stop, or forget the older half of what follows the first tokens",
    )
    keep_tokens: int = Field(
        default=32, ge=1, le=1 << 20, description="Tokens at the start of the prompt that a shift keeps"
    )


class Tuning(Section):
    """How the engine uses memory and processor."""

    kv_type: Literal["f16", "q8_0", "q4_0"] = Field(
        default="f16",
        description="Element type of the key/value cache; q8_0 takes about half of f16, q4_0 about a quarter",
    )
    flash_attention: Annotated[Literal["auto", "on", "off"], BeforeValidator(parse_switch)] = Field(
        default="auto", description="Flash attention; a quantised cache needs it"
    )
    mmap: bool = Field(default=True, description="Map the model file instead of reading it into memory")
    mlock: bool = Field(
        default=False,
        description="Keep weights and cache from being swapped out; the container must be allowed to (--ulimit memlock=-1)",
    )
    threads: int | None = Field(
        default=None, ge=1, le=512, description="Computing threads; by default one for each of cpu.cores"
    )
    batch_threads: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="Computing threads of passes of more than one token; by default as many as threads",
    )

    @model_validator(mode="after")
    def _check_together(self) -> "Tuning":
        if self.kv_type != "f16" and self.flash_attention == "off":
            raise ValueError(f"kv_type: a cache of {self.kv_type} needs flash attention, which is off")
        return self


class Metrics(Section):
    """What Prometheus may read of the server."""

    enabled: bool = Field(default=True, description="Whether there is a /metrics; without it 3 MB are saved")
    open: bool = Field(default=False, description="Whether /metrics needs neither key nor certificate")


class Access(Section):
    """What the server insists on; keys and certificates themselves are mounted at run time, never part of an image."""

    require_tls: bool = Field(default=False, description="Whether the server refuses to start without TLS")
    require_certificate: bool = Field(
        default=False, description="Whether every client needs a certificate (mutual TLS), with a key too"
    )
    require_key: bool = Field(
        default=False, description="Whether every client needs a key, with a certificate too"
    )
    tls_minimum: Literal["1.2", "1.3"] = Field(
        default="1.2", description="Lowest version of TLS; in quotes, since YAML would read a number"
    )


class Audit(Section):
    """What the server writes down of requests, in a volume mounted at /var/lib/edge."""

    enabled: bool = Field(default=False, description="Whether an audit log is kept")
    required: bool = Field(
        default=False, description="Whether requests are refused while the audit log cannot be written"
    )
    prompts: bool = Field(default=False, description="Whether the log holds prompts in the clear")
    sync: Literal["line", "checkpoint"] = Field(
        default="checkpoint", description="What is brought to the disk at once: each line, or each checkpoint"
    )
    checkpoint_lines: int = Field(
        default=100, ge=1, le=10_000, description="Lines after which a checkpoint is signed"
    )
    checkpoint_s: int = Field(
        default=60, ge=1, le=86400, description="Seconds after which a checkpoint is signed"
    )
    file: Size = Field(
        default=8 << 20, ge=1 << 16, le=1 << 28, description="Size at which a new file is begun"
    )
    total: Size = Field(
        default=64 << 20, le=1 << 40, description="Size of all files beyond which the oldest goes"
    )

    @model_validator(mode="after")
    def _check_together(self) -> "Audit":
        if self.total < 2 * self.file:
            raise ValueError(f"total: {self.total} bytes are less than two files of {self.file}")
        return self


class Server(Section):
    """The server in the image."""

    port: int = Field(
        default=8080, ge=1024, le=65535, description="TCP port; above 1023, since the server is not root"
    )
    grpc: bool = Field(
        default=False, description="Serve gRPC too; adds a layer of its own to the image and takes memory"
    )
    grpc_port: int = Field(default=50051, ge=1024, le=65535, description="TCP port of gRPC")
    slots: int = Field(
        default=1, ge=1, le=64, description="Requests computed side by side; each has its own context"
    )
    limits: Limits = Field(default=Limits(), description="Hard caps of the server")
    access: Access = Field(default=Access(), description="Who may use the server")
    audit: Audit = Field(default=Audit(), description="What the server writes down of requests")
    metrics: Metrics = Field(default=Metrics(), description="What Prometheus may read of the server")
    model_check: Literal["always", "first_start", "never"] = Field(
        default="first_start",
        description="When the server compares the model's digest; first_start needs a volume over /var/lib/edge to remember",
    )
    memory_check: Literal["refuse", "warn"] = Field(
        default="refuse", description="What the server does where there is less memory than planned"
    )


class Balena(Section):
    """Deployment to balenaOS."""

    device_type: str = Field(
        pattern=r"^[a-z0-9-]+$", description="balena's device type", examples=["raspberrypi4-64"]
    )


class Greengrass(Section):
    """Deployment with AWS IoT Greengrass version 2."""

    architecture: Literal["aarch64", "amd64"] = Field(description="Greengrass' name of the architecture")


class Deployment(Section):
    """Where images for this device are deployed to; what is absent is not offered."""

    balena: Balena | None = Field(default=None, description="Deployment to balenaOS")
    greengrass: Greengrass | None = Field(
        default=None, description="Deployment with AWS IoT Greengrass version 2"
    )


class DeviceProfile(Section):
    """A device, complete and checked."""

    schema_version: Literal[1] = Field(description="Version of this format")
    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", description="Name; part of tags and labels"
    )
    description: str = Field(default="", max_length=200, description="One line for people")
    platform: Literal["linux/amd64", "linux/arm64"] = Field(description="Platform of the image")
    cpu: Cpu = Field(description="The processor")
    memory: Size = Field(description="Memory of the device")
    reserve: Share = Field(
        default=300,
        validate_default=False,
        description="Share of the memory left to the system and other programs",
    )
    storage: Size = Field(description="Storage of the device")
    accelerator: Literal["none", "cuda"] = Field(default="none", description="Accelerator of the device")
    host_os: Literal["debian", "jetpack", "balena"] = Field(
        default="debian", description="Operating system that runs the container"
    )
    engine: Literal["llama.cpp"] = Field(default="llama.cpp", description="Inference engine")
    context: int = Field(
        default=2048, ge=64, le=1 << 20, description="Longest sequence, prompt and answer together, in tokens"
    )
    batch: int = Field(
        default=256,
        ge=1,
        le=4096,
        description="Prompt tokens computed in one step; more is faster and takes more memory",
    )
    quantization: Quantization = Field(
        default="Q4_K_M", description="Type that a 16-bit model is quantised to"
    )
    tuning: Tuning = Field(default=Tuning(), description="How the engine uses memory and processor")
    server: Server = Field(default=Server(), description="The server in the image")
    deployment: Deployment = Field(
        default=Deployment(), description="Where images for this device are deployed to"
    )

    @model_validator(mode="after")
    def _check_together(self) -> "DeviceProfile":
        known = CPU_VARIANTS[self.oci_platform.architecture]
        if self.cpu.variant not in known:
            raise ValueError(
                f"cpu.variant: {self.cpu.variant!r} is not built for {self.platform}; known are {', '.join(known)}"
            )
        limits = self.server.limits
        if 0 < limits.window_tokens < limits.window_stride_tokens:
            raise ValueError(
                f"server.limits.window_stride_tokens: {limits.window_stride_tokens} would skip text between windows of {limits.window_tokens} tokens"
            )
        if self.server.grpc and self.server.grpc_port == self.server.port:
            raise ValueError(f"server.grpc_port: {self.server.grpc_port} is the port of HTTP too")
        if self.server.grpc and self.server.access.tls_minimum != "1.2":
            raise ValueError(
                f"server.access.tls_minimum: gRPC speaks TLS 1.2 too, so {self.server.access.tls_minimum} cannot be kept with server.grpc"
            )
        if limits.past_context == "shift" and 2 * limits.keep_tokens >= self.context:
            raise ValueError(
                f"server.limits.keep_tokens: {limits.keep_tokens} is not less than half of the context of {self.context} tokens"
            )
        return self

    @property
    def oci_platform(self) -> Platform:
        """The platform as a value."""
        return Platform.parse(self.platform)

    @property
    def budget_bytes(self) -> int:
        """Bytes that the server may take: memory × (1 − reserve)."""
        return self.memory * (1000 - self.reserve) // 1000


def profile_names() -> tuple[str, ...]:
    """Return the names of the built-in profiles, sorted."""
    return tuple(sorted(path.stem for path in data_path("profiles").glob("*.yaml")))


def load_profile(reference: str, *, working_directory: Path) -> DeviceProfile:
    """Load a profile by built-in name or by path, with everything it extends.

    Args:
        reference: A name ("pi4") or a path ("./my.yaml": anything with a slash or ending in .yaml or .yml).
        working_directory: What a relative path is relative to.

    Raises:
        ProfileError: It is not there, not YAML, extends itself, or breaks a rule; all faults at once.
    """
    path = _find(reference, beside=working_directory, said_by="")
    return check_document(
        DeviceProfile,
        _load_chain(path, seen=()),
        kind=_PROFILE,
        hint="`edgebuild profiles schema` prints what a profile may hold",
    )


def profile_schema() -> dict[str, Any]:
    """Give the JSON Schema of a profile file, for editors.

    A file that extends another may leave out anything, so nothing but its name is required there.
    """
    schema = DeviceProfile.model_json_schema(mode="validation")
    required = schema.pop("required")
    for definition in schema.get("$defs", {}).values():
        definition.pop("required", None)
    schema["properties"] = {
        "extends": {
            "type": "string",
            "description": "Profile whose values this one overlays: a built-in name or a path beside this file",
        }
    } | schema["properties"]
    schema["anyOf"] = [{"required": ["extends"]}, {"required": required}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edgebuild device profile",
    } | schema


def _find(reference: str, *, beside: Path, said_by: str) -> Path:
    if "/" in reference or reference.endswith((".yaml", ".yml")):
        path = beside / Path(reference).expanduser()
        if not path.is_file():
            raise ProfileError(
                f"{said_by}{path}: no such profile file",
                hint="check the path, or see `edgebuild profiles list` for built-in names",
            )
        return path
    names = profile_names()
    if reference in names:
        return data_path("profiles") / f"{reference}.yaml"
    close = difflib.get_close_matches(reference, names, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    raise ProfileError(
        f"{said_by}unknown profile {reference!r}",
        hint=f"{meant}built in are {', '.join(names)}; a file of your own is given by its path, e.g. ./{reference}.yaml",
    )


def _load_chain(path: Path, *, seen: tuple[Path, ...]) -> Located:
    resolved = path.resolve()
    if resolved in seen:
        chain = " → ".join(item.name for item in (*seen[seen.index(resolved) :], resolved))
        raise ProfileError(
            f"{path}: extends itself: {chain}", hint="break the cycle: one of them must not extend the other"
        )
    own = load_yaml(path, kind=_PROFILE)
    parent = own.value.pop("extends", None)
    if parent is None:
        return own
    place = own.place(("extends",))
    if not isinstance(parent, str):
        raise ProfileError(f"{place}: extends is not text", hint="name one profile, e.g. `extends: pi4`")
    return overlay(
        _load_chain(_find(parent, beside=path.parent, said_by=f"{place}: "), seen=(*seen, resolved)), own
    )

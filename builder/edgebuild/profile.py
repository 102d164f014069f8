"""Device profiles: what a device is and what an image for it must keep to.

A profile is a YAML file. `extends` names another one (a built-in name or a path) whose values it overlays. A file is
checked whole: every fault is reported at once, with file, path and line.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from edgebuild.data import data_path
from edgebuild.documents import Kind, Located, Section, check_document, load_yaml, overlay
from edgebuild.errors import ProfileError
from edgebuild.gates import QualityGates
from edgebuild.oci.platform import Platform
from edgebuild.profile_engine import Auto, Quantization, Tuning
from edgebuild.profile_server import Server
from edgebuild.quantities import Share, Size

# Engine variants by architecture: what images/llama-cpp builds (facts of ggml/src/CMakeLists.txt).
CPU_VARIANTS = {
    "amd64": ("x64", "sse42", "haswell", "alderlake", "icelake"),
    "arm64": ("armv8.0_1", "armv8.2_2", "armv8.6_2"),
}

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
        description="Prompt tokens computed in one step; more is faster and takes more memory. A text to embed is one step: above 512 tokens only as long as this",
    )
    quantization: Literal[Quantization, "auto"] = Field(
        default="Q4_K_M",
        description="Type that a 16-bit model is quantised to; auto: the best that fits",
    )
    auto: Auto = Field(default=Auto(), description="What may be chosen so that a model fits")
    gates: QualityGates = Field(
        default=QualityGates(), description="What a quantised model must keep of its original"
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
        return self

    @model_validator(mode="after")
    def _check_auto(self) -> "DeviceProfile":
        limits, least = self.server.limits, self.auto.context.least or self.context
        if least > self.context:
            raise ValueError(f"auto.context.least: {least} is more than the context of {self.context} tokens")
        if self.tuning.flash_attention == "off" and set(self.auto.kv_types) - {"f16"}:
            raise ValueError("auto.kv_types: a cache of q8_0 or q4_0 needs flash attention, which is off")
        if limits.past_context == "shift" and 2 * limits.keep_tokens >= least:
            raise ValueError(
                f"server.limits.keep_tokens: {limits.keep_tokens} is not less than half of the context of {least} tokens"
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

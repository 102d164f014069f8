"""The plan: the only place that decides what goes into an image. Pure; templates and engines only carry it out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgebuild import __version__
from edgebuild.choice import Choice
from edgebuild.errors import PlanError
from edgebuild.fit import Fit, make_fit, planned_context, verify_fit
from edgebuild.model_spec import ModelSpec
from edgebuild.oci.digest import Digest
from edgebuild.oci.image import RunConfig, rfc3339
from edgebuild.oci.layer import Role
from edgebuild.profile import CPU_VARIANTS, DeviceProfile
from edgebuild.quality import Quality, quality_labels

# The time of creation where neither SOURCE_DATE_EPOCH nor the lock gives one: the release of this version.
VERSION_EPOCH_S = 1_795_392_000  # 2026-11-23
USER = "10001:10001"
ENGINE_FOLDER = "/opt/edge/engine"
GRPC_FOLDER = "/opt/edge/grpc"
# Only images whose model embeds texts have it.
VECTOR_LENGTH_LABEL = "dev.edgebuild.model.vector_length"
# In the root file system an empty folder; a device mounts a volume there if the server shall keep anything.
STATE_FOLDER = "/var/lib/edge"
PREFIXES: Mapping[Role, str] = {
    Role.ROOTFS: "",
    Role.PYTHON_DEPS: "opt/edge/deps",
    # From the root: beside the packages in GRPC_FOLDER it brings a library of Debian's.
    Role.GRPC: "",
    Role.ENGINE: "opt/edge/engine",
    Role.SERVER: "opt/edge/server",
}
ARTIFACTS: Mapping[Role, str] = {
    Role.ROOTFS: "rootfs",
    Role.PYTHON_DEPS: "python-deps",
    Role.GRPC: "grpc",
    Role.ENGINE: "llama-cpp",
    Role.SERVER: "server",
}
_PYTHON = "/usr/bin/python3.13"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How a checkpoint became a GGUF file.

    Attributes:
        by: Program and release, e.g. "convert_hf_to_gguf.py of llama-cpp-python 0.3.36".
        quantization: How the checkpoint's weights were quantised already, e.g. "gptq", or "".
        files: Names of the checkpoint's files with their digests, sorted.
    """

    by: str
    quantization: str
    files: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Give the JSON object of model.json and `--json`."""
        return {"by": self.by, "quantization": self.quantization or None, "files": dict(self.files)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model was taken from. It goes into images: no folders of this machine and no secrets.

    Attributes:
        kind: "file", "demo", "huggingface", "web" or "oci".
        reference: What gives the same file again: hf://ORG/REPO@COMMIT/FILE, an address, oci://REPO@DIGEST; of a file its name.
        revision: Commit or manifest digest, or "".
        file: Name of the file there; of several, the first.
        sha256: Hash of the file as the source gave it, or ""; of several, "".
        licence: As the source states it, or "".
        files: Of a model in several files, name and hash of each, in order; else empty.
        conversion: How it was made of what lies there, or None when it lies there as it is.
    """

    kind: str
    reference: str
    revision: str = ""
    file: str
    sha256: str = ""
    licence: str = ""
    files: tuple[tuple[str, str], ...] = ()
    conversion: Conversion | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the JSON object of model.json and `--json`; what is not known is null. Only several files and a conversion are listed."""
        files = [{"file": file, "digest": _digest_text(sha256)} for file, sha256 in self.files]
        converted = {"converted": self.conversion.to_json()} if self.conversion else {}
        return (
            {
                "kind": self.kind,
                "reference": self.reference,
                "revision": self.revision or None,
                "file": self.file,
                "digest": _digest_text(self.sha256),
                "licence": self.licence or None,
            }
            | ({"files": files} if files else {})
            | converted
        )


def _digest_text(sha256: str) -> str | None:
    return f"sha256:{sha256}" if sha256 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixRecord:
    """The importance matrix by which a model was quantised.

    Attributes:
        name: Name of the file, or "auto".
        digest: Its sha256.
        text: Text that it was computed from, as far as it is known.
        chunks: Chunks of that text; 0 when unknown.
    """

    name: str
    digest: Digest
    text: str
    chunks: int

    def to_json(self) -> dict[str, str | int | None]:
        """Give the JSON object of model.json and `--json`; what is not known is null."""
        return {
            "name": self.name,
            "digest": str(self.digest),
            "calibration": self.text or None,
            "chunks": self.chunks or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrigin:
    """Where the model in the image comes from, and what became of it.

    Attributes:
        source: Where it was taken from.
        source_quantization: Type of the source.
        quantized_by: How it was quantised, e.g. "llama_model_quantize Q4_K_M", or "" when taken as it is.
        quality: What was measured of it, or None.
        matrix: Importance matrix by which it was quantised, or None.
    """

    source: ModelSource
    source_quantization: str
    quantized_by: str
    quality: Quality | None = None
    matrix: MatrixRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Everything decided about one image.

    Attributes:
        profile: The device.
        model: The model as it will be in the image.
        origin: Where it comes from.
        fit: The memory arithmetic.
        layers: Roles of the layers, bottom first.
        run: How a container starts; its labels lack the model's digest, which is known once it was hashed.
        epoch_s: Time of creation, seconds since 1970.
        accelerated: Whether the image uses the device's accelerator.
    """

    profile: DeviceProfile
    model: ModelSpec
    origin: ModelOrigin
    fit: Fit
    layers: tuple[Role, ...]
    epoch_s: int
    accelerated: bool

    @property
    def demand(self) -> tuple[str, bool, int, int, str]:
        """Order within an index: by platform, CPU before accelerator, lowest demand first."""
        platform = self.profile.oci_platform
        rank = CPU_VARIANTS[platform.architecture].index(self.profile.cpu.variant)
        return str(platform), self.accelerated, rank, self.fit.need_bytes, self.profile.name


def software_roles(profile: DeviceProfile) -> tuple[Role, ...]:
    """Return the roles of the layers between the model and the settings, bottom first; each is made by a recipe."""
    return tuple(role for role in ARTIFACTS if role is not Role.GRPC or profile.server.grpc)


def make_plan(
    profile: DeviceProfile,
    model: ModelSpec,
    origin: ModelOrigin,
    *,
    epoch_s: int,
    choice: Choice | None = None,
) -> BuildPlan:
    """Decide an image: check that the model fits, choose layers and settings.

    Args:
        profile: The device.
        model: The model as it will be in the image, after quantising.
        origin: Where it comes from.
        epoch_s: Time of creation, seconds since 1970.
        choice: Type of the cache and length of the context; None takes the profile's own.

    Raises:
        PlanError: The model does not fit the device.
    """
    fit = make_fit(
        model,
        profile,
        is_estimate=False,
        kv_type=choice.kv_type if choice else None,
        context_tokens=choice.context_tokens if choice else None,
    )
    verify_fit(fit, model_name=model.name)
    if fit.context_tokens <= 16:
        raise PlanError(
            f"{model.name} was trained for {model.context_trained} tokens only",
            hint="take a model with a longer context",
        )
    return BuildPlan(
        profile=profile,
        model=model,
        origin=origin,
        fit=fit,
        layers=(Role.MODEL, *software_roles(profile), Role.CONFIG),
        epoch_s=epoch_s,
        accelerated=False,
    )


def notes(plan: BuildPlan) -> tuple[str, ...]:
    """Tell what a person should know of this plan, one line each."""
    found = []
    if plan.profile.accelerator != "none":
        found.append(
            f"{plan.profile.name}: CPU only; this release does not use the device's {plan.profile.accelerator} accelerator yet"
        )
    found += _shortened(plan)
    if plan.model.embedder is not None and plan.profile.server.grpc:
        found.append(
            f"{plan.profile.name}: {plan.model.name} embeds texts, for which there is no gRPC method; clients use HTTP"
        )
    if not plan.model.licence:
        found.append(f"{plan.model.name}: the model names no licence; see that you may distribute it")
    return tuple(found)


def _shortened(plan: BuildPlan) -> list[str]:
    """Tell where the image has less than the profile wishes."""
    name, context, kv_type = plan.profile.name, plan.profile.context, plan.profile.tuning.kv_type
    possible, found = planned_context(plan.model, plan.profile), []
    if possible < min(context, plan.model.context_trained):
        found.append(
            f"{name}: texts have up to {possible} tokens, not {min(context, plan.model.context_trained)}: each is computed in one pass; for longer ones raise the profile's batch"
        )
    elif possible < context:
        found.append(
            f"{name}: context is {possible} tokens, not {context}: the model was trained for no more"
        )
    if plan.fit.context_tokens < possible:
        found.append(f"{name}: context is {plan.fit.context_tokens} tokens, not {possible}, so that it fits")
    if plan.fit.kv_type != kv_type:
        found.append(f"{name}: the cache is {plan.fit.kv_type}, not {kv_type}")
    return found


def model_identity(diff_ids: tuple[Digest, ...]) -> Digest:
    r"""Name a model by what it is made of.

    Args:
        diff_ids: Of its layers, bottom first.

    Returns:
        The diff_id of the only layer; of several, the sha256 of their diff_ids, a line each: what
        `printf '%s\\n' sha256:… sha256:… | sha256sum` gives.
    """
    if len(diff_ids) == 1:
        return diff_ids[0]
    return Digest.of("".join(f"{diff_id}\n" for diff_id in diff_ids).encode())


def make_run(plan: BuildPlan, *, model_digest: Digest) -> RunConfig:
    """Decide how a container of the image starts.

    Args:
        plan: The plan.
        model_digest: See `model_identity`.
    """
    interpreter = (_PYTHON, "-P", "-m", "edgeserve")
    server = plan.profile.server
    packages = [f"/{PREFIXES[role]}" for role in (Role.SERVER, Role.ENGINE, Role.PYTHON_DEPS)]
    if server.grpc:
        packages.append(GRPC_FOLDER)
    return RunConfig(
        user=USER,
        environment=(
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("LANG", "C.UTF-8"),
            ("PYTHONPATH", ":".join(packages)),
            ("PYTHONDONTWRITEBYTECODE", "1"),
            ("PYTHONUNBUFFERED", "1"),
        ),
        entrypoint=interpreter,
        command=("serve",),
        working_directory="/",
        exposed_ports=(server.port, *((server.grpc_port,) if server.grpc else ())),
        health_command=(*interpreter, "health"),
        health_interval_s=30,
        health_start_period_s=120,
        labels=tuple(sorted(make_labels(plan, model_digest=model_digest).items())),
    )


def make_labels(plan: BuildPlan, *, model_digest: Digest) -> dict[str, str]:
    """Name what the image is and needs, as labels of the config and annotations of the manifest.

    Source: image-spec v1.1 annotations.md for the pre-defined keys.
    """
    profile, model = plan.profile, plan.model
    labels = {
        "org.opencontainers.image.created": rfc3339(plan.epoch_s),
        "org.opencontainers.image.title": f"{model.name} for {profile.name}",
        "org.opencontainers.image.description": f"{model.name} ({model.quantization}) with an OpenAI-compatible server, for {profile.description or profile.name}",
        "dev.edgebuild.version": __version__,
        "dev.edgebuild.profile": profile.name,
        "dev.edgebuild.engine": profile.engine,
        "dev.edgebuild.accelerator": profile.accelerator if plan.accelerated else "none",
        "dev.edgebuild.cpu.variants": ",".join(CPU_VARIANTS[profile.oci_platform.architecture]),
        "dev.edgebuild.cpu.expected": profile.cpu.variant,
        "dev.edgebuild.cpu.model": profile.cpu.model,
        "dev.edgebuild.memory.need_bytes": str(plan.fit.need_bytes),
        "dev.edgebuild.memory.budget_bytes": str(plan.fit.budget_bytes),
        "dev.edgebuild.context_tokens": str(plan.fit.context_tokens),
        "dev.edgebuild.kv_type": plan.fit.kv_type,
        "dev.edgebuild.model.name": model.name,
        "dev.edgebuild.model.digest": str(model_digest),
        "dev.edgebuild.model.quantization": model.quantization,
    }
    # Only the model states a licence; Debian's packages carry theirs in /usr/share/doc.
    labels |= quality_labels(plan.origin.quality)
    if model.embedder is not None:
        labels[VECTOR_LENGTH_LABEL] = str(model.embedder.vector_length)
    if plan.origin.matrix is not None:
        labels["dev.edgebuild.model.importance_matrix"] = str(plan.origin.matrix.digest)
    return labels | ({"dev.edgebuild.model.licence": model.licence} if model.licence else {})

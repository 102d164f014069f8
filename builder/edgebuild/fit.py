"""Sizing: how much memory a model takes on a device, and whether that fits. Pure arithmetic over header and profile."""

from collections.abc import Iterator
from dataclasses import dataclass

from edgebuild.errors import PlanError
from edgebuild.memory import (
    AUDIT_BYTES,
    GRPC_BYTES,
    SERVER_BYTES,
    Workload,
    compute_bytes,
    copied_bytes,
    kv_block_bytes,
    kv_cache_bytes,
    output_bytes,
    padded_context,
    state_bytes,
    vocabulary_bytes,
)
from edgebuild.model_spec import ModelSpec
from edgebuild.profile import DeviceProfile

# What most models that embed texts are trained for; search cuts longer ones into pieces anyway.
USUAL_TEXT_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRow:
    """One line of the arithmetic.

    Attributes:
        what: What takes the memory.
        formula: How its size comes about.
        size_bytes: The size.
    """

    what: str
    formula: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a model takes on a device.

    Attributes:
        profile: Name of the profile.
        quantization: Type that the image would hold.
        kv_type: Element type of the key/value cache.
        context_tokens: Longest sequence of one slot.
        model_bytes: Size of the model.
        rows: The arithmetic; the sizes add up to `need_bytes`.
        budget_bytes: Memory × (1 − reserve).
        budget_formula: How the budget comes about.
        storage_need_bytes: Twice the model, which a pull takes (blob and unpacked layer), in bytes.
        storage_bytes: Storage of the device.
        is_estimate: Whether the model's size is an estimate, made before quantising.
    """

    profile: str
    quantization: str
    kv_type: str
    context_tokens: int
    model_bytes: int
    rows: tuple[FitRow, ...]
    budget_bytes: int
    budget_formula: str
    storage_need_bytes: int
    storage_bytes: int
    is_estimate: bool

    @property
    def need_bytes(self) -> int:
        """Memory that the server takes, in bytes."""
        return sum(row.size_bytes for row in self.rows)

    @property
    def excess_bytes(self) -> int:
        """How far memory or storage, whichever is the worse, is from sufficing, in bytes; at most 0 where it fits."""
        return max(self.need_bytes - self.budget_bytes, self.storage_need_bytes - self.storage_bytes)

    @property
    def refusal(self) -> str:
        """Why it does not fit, on one line; empty when it fits."""
        if self.need_bytes > self.budget_bytes:
            return f"needs {format_bytes(self.need_bytes)} of memory, {self.profile} leaves {format_bytes(self.budget_bytes)}"
        if self.storage_need_bytes > self.storage_bytes:
            return f"needs {format_bytes(self.storage_need_bytes)} of storage while it is pulled, {self.profile} has {format_bytes(self.storage_bytes)}"
        return ""


def make_fit(
    model: ModelSpec,
    profile: DeviceProfile,
    *,
    is_estimate: bool,
    kv_type: str | None = None,
    context_tokens: int | None = None,
) -> Fit:
    """Work out what a model takes on a device.

    Args:
        model: The model as it will be in the image.
        profile: The device.
        is_estimate: Whether the model's size is computed, not measured.
        kv_type: Element type of the key/value cache; None takes the profile's.
        context_tokens: Longest sequence of one slot; None takes the profile's, or what the model was trained for.
    """
    context = context_tokens or planned_context(model, profile)
    work = Workload(
        context_tokens=context,
        slots=profile.server.slots,
        batch_tokens=min(profile.batch, context),
        kv_type=kv_type or profile.tuning.kv_type,
        flash_attention=profile.tuning.flash_attention != "off",
        whole_texts=model.embedder is not None,
    )
    return Fit(
        profile=profile.name,
        quantization=model.quantization,
        kv_type=work.kv_type,
        context_tokens=context,
        model_bytes=model.file_bytes,
        rows=tuple(row for row in _rows(model, profile, work) if row.size_bytes),
        budget_bytes=profile.budget_bytes,
        budget_formula=f"{format_bytes(profile.memory)} × (1 − {profile.reserve / 10:g} %)",
        storage_need_bytes=2 * model.file_bytes,
        storage_bytes=profile.storage,
        is_estimate=is_estimate,
    )


def _rows(model: ModelSpec, profile: DeviceProfile, work: Workload) -> Iterator[FitRow]:
    """Work out each part of the memory; one that takes nothing has no bytes."""
    yield FitRow(
        what="model",
        formula=f"{model.quantization}, {model.parameters / 1e6:.1f} M parameters",
        size_bytes=model.file_bytes,
    )
    yield FitRow(
        what="weights held twice",
        formula="copied into the processor's order, and still wanted as they are",
        size_bytes=copied_bytes(
            model, variant=profile.cpu.variant, is_pinned=profile.tuning.mlock and profile.tuning.mmap
        ),
    )
    yield FitRow(
        what="vocabulary",
        formula=f"{model.vocabulary} tokens, {model.merges} merges",
        size_bytes=vocabulary_bytes(model),
    )
    padded = padded_context(work.context_tokens)
    slots = "" if work.whole_texts else f" × {work.slots} slots"
    yield FitRow(
        what="KV cache",
        formula=f"{padded} tokens{slots} × {sum(model.kv_heads)} heads in {model.layers} layers × "
        f"({model.key_length} + {model.value_length}) × {kv_block_bytes(work.kv_type) / 32:g} B ({work.kv_type})",
        size_bytes=kv_cache_bytes(model, work),
    )
    yield FitRow(
        what="states",
        formula=f"{model.recurrent_layers} recurrent layers × {work.sequences} {'texts' if work.whole_texts else 'slots'} × {model.state_length} × 4 B",
        size_bytes=state_bytes(model, work),
    )
    seen = work.pass_tokens if model.is_encoder else padded
    scores = f" + {model.heads} heads × {seen} scores" if not work.flash_attention else ""
    yield FitRow(
        what="compute buffers",
        formula=f"{'text of' if work.whole_texts else 'batch'} {work.pass_tokens} × (activations{scores} + mask of {seen}) × 4 B",
        size_bytes=compute_bytes(model, work),
    )
    yield FitRow(
        what="output",
        formula=f"{work.slots} slots × {model.vocabulary} logits, and candidates"
        if model.embedder is None
        else f"{work.output_tokens} tokens × ({model.vocabulary} logits + {model.embedder.vector_length}) × 4 B",
        size_bytes=output_bytes(model, work),
    )
    yield FitRow(what="server", formula="Python, server, engine", size_bytes=SERVER_BYTES)
    yield FitRow(
        what="gRPC",
        formula="grpcio, connections, messages",
        size_bytes=GRPC_BYTES if profile.server.grpc else 0,
    )
    yield FitRow(
        what="audit log",
        formula="signing",
        size_bytes=AUDIT_BYTES if profile.server.audit.enabled else 0,
    )


def planned_context(model: ModelSpec, profile: DeviceProfile) -> int:
    """Take the profile's context, but never more than the model was trained for.

    A text is embedded in one pass, for each token of which llama.cpp keeps room for the logits of the whole vocabulary. So
    longer texts than usual ones are for those who ask for it, by `batch`.
    """
    most = min(profile.context, model.context_trained)
    return most if model.embedder is None else min(most, max(profile.batch, USUAL_TEXT_TOKENS))


def verify_fit(fit: Fit, *, model_name: str) -> None:
    """Refuse a model that does not fit.

    Raises:
        PlanError: It does not fit; the message says by how much.
    """
    if fit.refusal:
        about = " (computed before quantising)" if fit.is_estimate else ""
        raise PlanError(
            f"{model_name} as {fit.quantization} does not fit {fit.profile}{about}: {fit.refusal}",
            hint="take a smaller model, a smaller --quantization (e.g. Q4_K_M), or a profile with less context, fewer slots, a smaller tuning.kv_type or more memory",
        )


def format_bytes(count: int) -> str:
    """Write a number of bytes for people, with three digits: "2.70 GiB", "83.1 MiB", "512 B"."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"

"""Sizing: how much memory a model takes on a device, and whether that fits. Pure arithmetic over header and profile."""

from dataclasses import dataclass

from edgebuild.errors import PlanError
from edgebuild.model_spec import ModelSpec
from edgebuild.profile import DeviceProfile

# Resident memory of Python, the server's packages and the engine's libraries: 54 MB was measured on a running image with
# a model of 7.6 MB loaded; the rest is room for requests under way.
SERVER_BYTES = 72 << 20
# What gRPC adds to it: 19 MB were measured after 160 calls by 16 clients; the rest is room for messages and connections.
GRPC_BYTES = 28 << 20
# Bytes of 32 elements of the key/value cache: block_q8_0 and block_q4_0 are 32 numbers and a 16-bit scale.
# Source: llama.cpp ggml/src/ggml-common.h.
_KV_BLOCK_BYTES = {"f16": 64, "q8_0": 34, "q4_0": 18}
_FLOAT_BYTES = 4


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


def kv_cache_bytes(model: ModelSpec, *, context_tokens: int, slots: int, kv_type: str) -> int:
    """Size the key/value cache.

    Args:
        model: The model.
        context_tokens: Longest sequence of one slot, in tokens.
        slots: Sequences side by side.
        kv_type: Type of its elements: f16, q8_0 or q4_0.

    Returns:
        Bytes for arrays K and V of every layer, of shapes (slots × context, kv_heads × key_length) and
        (slots × context, kv_heads × value_length).
    """
    elements = context_tokens * slots * sum(model.kv_heads) * (model.key_length + model.value_length)
    return elements * _KV_BLOCK_BYTES[kv_type] // 32


def compute_bytes(model: ModelSpec, *, batch_tokens: int, score_tokens: int) -> int:
    """Bound the engine's buffers for one step: activations of a batch, its attention scores, its logits.

    The logits of a batch are reserved for every token of it (llama.cpp src/llama-context.cpp, graph_reserve), which for
    large vocabularies is what dominates.

    Args:
        model: The model.
        batch_tokens: Tokens of one step.
        score_tokens: Tokens that each head's scores of one token are held for: the context, or 0 with flash attention,
            which never holds them whole.
    """
    per_token = model.vocabulary + 6 * model.embedding + 2 * model.feed_forward + model.heads * score_tokens
    return batch_tokens * per_token * _FLOAT_BYTES


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
    slots, batch = profile.server.slots, min(profile.batch, context)
    kv_total, kv_type = sum(model.kv_heads), kv_type or profile.tuning.kv_type
    score_tokens = context if profile.tuning.flash_attention == "off" else 0
    held = f"activations + {model.heads} heads × {context} scores" if score_tokens else "activations"
    rows: tuple[FitRow, ...] = (
        FitRow(
            what="model",
            formula=f"{model.quantization}, {model.parameters / 1e6:.1f} M parameters",
            size_bytes=model.file_bytes,
        ),
        FitRow(
            what="KV cache",
            formula=f"{context} tokens × {slots} slots × {kv_total} heads in {model.layers} layers × "
            f"({model.key_length} + {model.value_length}) × {_KV_BLOCK_BYTES[kv_type] / 32:g} B ({kv_type})",
            size_bytes=kv_cache_bytes(model, context_tokens=context, slots=slots, kv_type=kv_type),
        ),
        FitRow(
            what="compute buffers",
            formula=f"batch {batch} × ({model.vocabulary} vocabulary + {held}) × {_FLOAT_BYTES} B",
            size_bytes=compute_bytes(model, batch_tokens=batch, score_tokens=score_tokens),
        ),
        FitRow(what="server", formula="Python, server, engine", size_bytes=SERVER_BYTES),
    )
    if profile.server.grpc:
        rows += (FitRow(what="gRPC", formula="grpcio, connections, messages", size_bytes=GRPC_BYTES),)
    return Fit(
        profile=profile.name,
        quantization=model.quantization,
        kv_type=kv_type,
        context_tokens=context,
        model_bytes=model.file_bytes,
        rows=rows,
        budget_bytes=profile.budget_bytes,
        budget_formula=f"{format_bytes(profile.memory)} × (1 − {profile.reserve / 10:g} %)",
        storage_need_bytes=2 * model.file_bytes,
        storage_bytes=profile.storage,
        is_estimate=is_estimate,
    )


def planned_context(model: ModelSpec, profile: DeviceProfile) -> int:
    """Take the profile's context, but never more than the model was trained for."""
    return min(profile.context, model.context_trained)


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

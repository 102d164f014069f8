"""The documents that an image carries in /etc/edgebuild: what the server reads, and what a person asks. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgebuild import __version__
from edgebuild.canonical import pretty_json
from edgebuild.fit import format_bytes
from edgebuild.oci.digest import Digest
from edgebuild.plan import ENGINE_FOLDER, STATE_FOLDER, BuildPlan, model_identity
from edgebuild.quality import quality_card, quality_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class BakedFile:
    """A file of the model, and the layer that brings it.

    Attributes:
        path: Absolute path in the image.
        size_bytes: Its size.
        diff_id: Of its layer: sha256(before ‖ file ‖ after).
        before: What the layer's tar puts before the file's bytes.
        after: What it puts after them, zeros.
    """

    path: str
    size_bytes: int
    diff_id: Digest
    before: bytes
    after: bytes


def make_contents(plan: BuildPlan, files: tuple[BakedFile, ...]) -> Mapping[str, bytes]:
    """Write the files of the config layer.

    Args:
        plan: The plan.
        files: The model's files; llama.cpp is given the first and wants all.

    Returns:
        Bytes by path inside the image, without a leading slash.
    """
    return {
        "etc/edgebuild/README.md": _readme(plan, files).encode(),
        "etc/edgebuild/model.json": pretty_json(_model_document(plan, files)),
        "etc/edgebuild/runtime.json": pretty_json(_runtime_document(plan, files)),
    }


def _runtime_document(plan: BuildPlan, files: tuple[BakedFile, ...]) -> dict[str, Any]:
    """Settings of the server; the format is edgeserve's (images/server/edgeserve/config.py), schema_version 1."""
    profile, limits, tuning = plan.profile, plan.profile.server.limits, plan.profile.tuning
    audit = profile.server.audit
    context = plan.fit.context_tokens
    is_endless = limits.past_context == "shift"
    room = 1 if plan.model.embedder is None else 0  # for an answer
    output = limits.output_tokens if is_endless else min(limits.output_tokens, context * 3 // 4)
    return {
        "schema_version": 1,
        "profile": profile.name,
        "model": {
            "name": plan.model.name,
            "files": [file.path for file in files],
            "card": "/etc/edgebuild/model.json",
            "check": profile.server.model_check,
        },
        "engine": {
            "name": profile.engine,
            "library_dir": f"{ENGINE_FOLDER}/llama_cpp/lib",
            "context_tokens": context,
            # A text is embedded in one pass.
            "batch_tokens": min(profile.batch, context) if plan.model.embedder is None else context,
            "slots": profile.server.slots,
            "threads": tuning.threads or profile.cpu.cores,
            "batch_threads": tuning.batch_threads or 0,
            "kv_type": plan.fit.kv_type,
            "flash_attention": tuning.flash_attention,
            "mmap": tuning.mmap,
            "mlock": tuning.mlock,
            "past_context": limits.past_context,
            # A model trained for less than the profile's context has less to keep.
            "keep_tokens": min(limits.keep_tokens, (context - 1) // 2),
            "cpu_variant": profile.cpu.variant,
        },
        "server": {
            "host": "0.0.0.0",  # noqa: S104 - inside a container, whose network decides who reaches it
            "port": profile.server.port,
            "grpc": {"enabled": profile.server.grpc, "port": profile.server.grpc_port},
            "state_dir": STATE_FOLDER,
            "limits": {
                "body_bytes": limits.body,
                "prompt_tokens": min(limits.prompt_tokens or context, context - room),
                "output_tokens": output,
                "request_s": limits.request_s,
                "over_long": limits.over_long,
                "window_tokens": limits.window_tokens,
                "window_stride_tokens": limits.window_stride_tokens,
                "windows": limits.windows,
                "first_token_s": limits.first_token_s,
                "queue": limits.queue,
                "client_requests": limits.client_requests,
                "connections": limits.connections,
                "connections_per_address": limits.connections_per_address,
                "header_s": limits.header_s,
                "body_s": limits.body_s,
                "idle_s": limits.idle_s,
                "unread_s": limits.unread_s,
            },
            "access": profile.server.access.model_dump(),
            "audit": {
                "enabled": audit.enabled,
                "required": audit.required,
                "prompts": audit.prompts,
                "sync": audit.sync,
                "checkpoint_lines": audit.checkpoint_lines,
                "checkpoint_s": audit.checkpoint_s,
                "file_bytes": audit.file,
                "total_bytes": audit.total,
            },
            "metrics": {
                "enabled": profile.server.metrics.enabled,
                "open": profile.server.metrics.open,
            },
        },
        "memory": {
            "need_bytes": plan.fit.need_bytes,
            "budget_bytes": plan.fit.budget_bytes,
            "check": profile.server.memory_check,
        },
    }


def _model_document(plan: BuildPlan, files: tuple[BakedFile, ...]) -> dict[str, Any]:
    """Describe the model so that a device can check it: sha256(before ‖ file ‖ after) is the diff_id of a file's layer."""
    model = plan.model
    return {
        "schema_version": 1,
        "name": model.name,
        "licence": model.licence or None,
        "architecture": model.architecture,
        "quantization": model.quantization,
        "parameters": model.parameters,
        "context_trained_tokens": model.context_trained,
        "embeds": None if model.embedder is None else asdict(model.embedder),
        "fitted_to": plan.profile.name,
        "source": plan.origin.source.to_json()
        | {
            "quantization": plan.origin.source_quantization,
            "quantized_by": plan.origin.quantized_by or None,
            "importance_matrix": None if plan.origin.matrix is None else plan.origin.matrix.to_json(),
        },
        "quality": quality_card(plan.origin.quality),
        "files": [
            {
                "path": file.path,
                "size_bytes": file.size_bytes,
                "digest": str(file.diff_id),
                "digest_before_hex": file.before.hex(),
                "digest_after_zero_bytes": len(file.after),
            }
            for file in files
        ],
    }


def _readme(plan: BuildPlan, files: tuple[BakedFile, ...]) -> str:
    model, fit = plan.model, plan.fit
    digest = model_identity(tuple(file.diff_id for file in files))
    rows = "\n".join(f"| {row.what} | {row.formula} | {format_bytes(row.size_bytes)} |" for row in fit.rows)
    return f"""# {model.name} for {plan.profile.name}

Made by edgebuild {__version__} for {plan.profile.description or plan.profile.name} ({plan.profile.platform}).

| | |
|---|---|
| Model | {model.name}, {model.architecture}, {model.parameters / 1e6:.1f} M parameters |
| Licence | {model.licence or "not stated by the model"} |
| Source | {_source_line(plan)} |
| Quantisation | {model.quantization} (from {plan.origin.source.file}, {plan.origin.source_quantization}){_matrix_line(plan)} |
| Quality | {"; ".join(quality_lines(plan.origin.quality))} |
| {"Layer digest" if len(files) == 1 else f"Digest of its {len(files)} layers"} | {digest} |
| {_sequence_row(plan)} |

Memory planned, of {format_bytes(fit.budget_bytes)} that the profile allows ({fit.budget_formula}):

| what | how | size |
|---|---|---|
{rows}
| **all** | | {format_bytes(fit.need_bytes)} |

The server listens on port {plan.profile.server.port}: `POST {"/v1/chat/completions" if model.embedder is None else "/v1/embeddings"}`, `GET /readyz`.{_grpc_line(plan)}
"""


def _sequence_row(plan: BuildPlan) -> str:
    """Tell how long what the model reads may be, and what comes of it where that is no text."""
    fit, slots, embedder = plan.fit, plan.profile.server.slots, plan.model.embedder
    if embedder is None:
        return f"Context | {fit.context_tokens} tokens, {slots} at a time, cache of {fit.kv_type}"
    texts = f"Texts | up to {fit.context_tokens} tokens each; requests at a time: {slots}"
    vectors = (
        f"Vectors | {embedder.vector_length} numbers, of length 1 ({embedder.pooling} of the tokens' vectors)"
    )
    return f"{texts} |\n| {vectors}"


def _matrix_line(plan: BuildPlan) -> str:
    matrix = plan.origin.matrix
    if matrix is None:
        return ""
    text = f" computed from {matrix.text}" if matrix.text else ""
    return f", importance matrix {matrix.name}{text} ({matrix.digest})"


def _grpc_line(plan: BuildPlan) -> str:
    server = plan.profile.server
    return f" gRPC on port {server.grpc_port}: `edge.v1.InferenceService`." if server.grpc else ""


def _source_line(plan: BuildPlan) -> str:
    source = plan.origin.source
    converted = f", converted by {source.conversion.by}" if source.conversion else ""
    return source.reference + (f", sha256:{source.sha256}" if source.sha256 else "") + converted

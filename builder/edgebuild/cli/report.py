"""The result of a build, for people and as the document of `--json`."""

from typing import Any

from edgebuild.cli.selection import fit_document
from edgebuild.cli.tables import render_table
from edgebuild.oci.layer import Role
from edgebuild.quality import quality_document
from edgebuild.request import BuildResult, BuiltImage, ImageRequest


def build_document(result: BuildResult, request: ImageRequest) -> dict[str, Any]:
    """Give the document of `edgebuild image --json`; docs/json.md describes it."""
    reference = request.reference
    return {
        "index": {
            "digest": str(result.index.digest),
            "layout": None if request.output is None else str(request.output),
            "tag": None if reference is None else str(reference),
            "tags": [str(reference) for reference in request.references],
        },
        "model": {
            "name": result.model.spec.name,
            "licence": result.model.spec.licence or None,
            "quantization": result.model.spec.quantization,
            "source": result.model.source.to_json(),
        },
        "images": [_image_document(built, request) for built in result.images],
    }


def _image_document(built: BuiltImage, request: ImageRequest) -> dict[str, Any]:
    image, reference = built.image, request.reference
    return {
        "profile": image.profile,
        "platform": str(image.platform),
        "engine": built.engine,
        "engine_requested": request.engine,
        "digest": str(image.digest),
        "config_digest": str(image.config_digest),
        "tag": None if reference is None else str(reference.with_tag(f"{reference.tag}-{image.profile}")),
        "software_bytes": software_bytes(built),
        "model_bytes": model_bytes(built),
        "layers": [
            {
                "role": layer.role.value,
                "media_type": layer.media_type,
                "digest": str(layer.digest),
                "diff_id": str(layer.diff_id),
                "size_bytes": layer.size_bytes,
            }
            for layer in image.layers
        ],
        "fit": fit_document(built.plan.fit),
        "quality": quality_document(built.plan.origin.quality),
        "smoke": None
        if built.smoke is None
        else {
            "cpu_model": built.smoke.cpu_model,
            "cpu_variant": built.smoke.cpu_variant,
            "ready_s": built.smoke.ready_s,
            "answer": built.smoke.answer,
            "vector_length": built.smoke.vector_length,
        },
        "signed_by": request.key_name or None,
        "seconds": dict(built.seconds),
    }


def software_bytes(built: BuiltImage) -> int:
    """Add up the compressed layers other than the model's."""
    return sum(layer.size_bytes for layer in built.image.layers if layer.role is not Role.MODEL)


def model_bytes(built: BuiltImage) -> int:
    """Add up the model's layers."""
    return sum(layer.size_bytes for layer in built.image.layers if layer.role is Role.MODEL)


def render_build(result: BuildResult, request: ImageRequest) -> str:
    """Lay out the result for a person."""
    rows = [
        (
            built.image.profile,
            str(built.image.platform),
            built.plan.model.quantization,
            f"{software_bytes(built) / 1e6:.1f} MB",
            f"{model_bytes(built) / 1e6:.1f} MB",
            "not tested"
            if built.smoke is None
            else f"{built.smoke.cpu_variant} on {built.smoke.cpu_model}, ready in {built.smoke.ready_s:.1f} s",
            str(built.image.digest),
        )
        for built in result.images
    ]
    table = render_table(
        ("profile", "platform", "type", "software", "model", "smoke test (emulated)", "digest"),
        rows,
        right=frozenset({3, 4}),
    )
    answers = [
        f"{built.image.profile} answered: {' '.join(built.smoke.answer.split())[:100]}"
        for built in result.images
        if built.smoke is not None
    ]
    signed = f", signed with {request.key_name}" if request.key is not None else ", not signed"
    place = request.output if request.output is not None else request.reference
    return "\n".join([table, *answers, f"index {result.index.digest} in {place}{signed}"])

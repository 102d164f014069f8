"""From the model that the user named to the one that an image holds: what may go in, which type fits, and making it."""

from edgebuild.engine.native import NativeEngine
from edgebuild.errors import PlanError
from edgebuild.fit import estimate_quantized, make_fit, planned_quantization, verify_fit
from edgebuild.model.quantize import quantize
from edgebuild.model.source import ModelFile, file_digest
from edgebuild.oci.platform import Platform
from edgebuild.plan import ModelOrigin
from edgebuild.profile import DeviceProfile
from edgebuild.request import Context, ImageRequest


def verify_licence(request: ImageRequest) -> None:
    """Refuse a model that must not be passed on.

    Raises:
        PlanError: No licence is stated, and the project file demands one.
    """
    if request.licence_required and not request.model.spec.licence:
        raise PlanError(
            f"{request.model.spec.name}: neither the model nor its source ({request.model.source.reference}) states a licence",
            hint="take a source that states it, or set gates.licence_required to false in the project file once you know that you may distribute it",
        )


def choose_quantization(request: ImageRequest, profile: DeviceProfile) -> str:
    """Decide the type of the weights for a profile and refuse what cannot fit.

    Raises:
        PlanError: It does not fit, or the type cannot be had from this model.
    """
    spec = request.model.spec
    target = planned_quantization(spec, profile, override=request.quantization)
    verify_fit(
        make_fit(estimate_quantized(spec, target), profile, is_estimate=target != spec.quantization),
        model_name=spec.name,
    )
    return target


def prepare_model(request: ImageRequest, target: str, *, engine: NativeEngine, context: Context) -> ModelFile:
    """Make the model what the image is to hold, from the store where that was done before.

    Raises:
        ModelError: llama.cpp refuses the model or the type.
        ToolError: Quantising failed, or the disk is full.
    """
    model = request.model
    if target == model.spec.quantization:
        return model
    here = Platform.of_machine(context.host.machine)
    is_wanted = any(profile.oci_platform == here for profile in request.profiles)
    return quantize(
        model,
        target,
        source_digest=file_digest(model.path, seals=context.store, progress=context.progress),
        library=lambda: engine.host_library(with_variants=is_wanted).tree,
        library_source=engine.library_source(),
        store=context.store,
        host=context.host,
        progress=context.progress,
    )


def model_origin(model: ModelFile, target: str) -> ModelOrigin:
    """Tell where the model in the image comes from, and what became of it."""
    is_same = target == model.spec.quantization
    return ModelOrigin(
        source=model.source,
        source_quantization=model.spec.quantization,
        quantized_by="" if is_same else f"llama_model_quantize {target}",
    )

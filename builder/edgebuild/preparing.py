"""From the model that the user named to the one that an image holds: what may go in, which type fits, and making it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebuild.choice import Candidate, Choice, Version, name_choice, verify_selection
from edgebuild.engine.native import NativeEngine
from edgebuild.errors import PlanError
from edgebuild.fit import format_bytes
from edgebuild.gguf_shards import cut_gguf, shard_names
from edgebuild.judging import is_measured, make_matrix
from edgebuild.model.importance import ImportanceMatrix
from edgebuild.model.quantize import quantize
from edgebuild.model.source import ModelFile
from edgebuild.model_spec import ModelSpec
from edgebuild.oci.blob import Blob
from edgebuild.oci.platform import Platform
from edgebuild.oci.tar import ModelTar, model_tar
from edgebuild.plan import MatrixRecord, ModelOrigin
from edgebuild.profile import DeviceProfile
from edgebuild.quality import GateError, Judgement, Quality
from edgebuild.request import Context, ImageRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What an image is going to hold.

    Attributes:
        model: The model as it is in the image.
        choice: Its type, that of the cache, and the context.
        quality: What was measured; None when nobody asked.
    """

    model: ModelFile
    choice: Choice
    quality: Quality | None


def verify_licence(request: ImageRequest) -> None:
    """Refuse a model that must not be passed on.

    Raises:
        PlanError: No licence is stated, and the project file demands one.
    """
    if request.licence_required and not request.model.spec.licence:
        raise PlanError(
            f"{request.model.spec.name}: neither the model nor its source ({request.model.place}) states a licence",
            hint="take a source that states it, or set gates.licence_required to false in the project file once you know that you may distribute it",
        )


def choose(request: ImageRequest) -> dict[str, Choice]:
    """Decide what each image holds, from computed sizes, and refuse what cannot fit.

    Returns:
        Choices by name of the profile.

    Raises:
        PlanError: Nothing fits, or the type cannot be had from this model.
    """
    versions = request.versions()
    return {
        profile.name: verify_selection(
            request.selection(profile, versions), model_name=request.model.spec.name
        )
        for profile in request.profiles
    }


def prepare(
    request: ImageRequest,
    choices: Mapping[str, Choice],
    *,
    make: Callable[[str], ModelFile],
    judge: Callable[[DeviceProfile, ModelFile], Judgement | None],
    context: Context,
) -> Mapping[str, Prepared]:
    """Make the models that the images hold, and choose again where one came out larger than computed, or is past a gate.

    What was chosen first is the best on the whole. Past a gate, which measures the weights, candidates with better ones
    are left: those with a smaller cache or a shorter context, where the profile allows them.

    Args:
        request: The request.
        choices: What was chosen from computed sizes, by name of the profile.
        make: Gives the model in a type; each is asked for once.
        judge: Measures a model for a device and holds it against the gates.
        context: Told where another choice had to be made.

    Returns:
        Models and choices by name of the profile; each fits with its true size and keeps within the gates.

    Raises:
        PlanError: With the true sizes nothing fits.
        GateError: What fits is past a gate.
        EdgebuildError: As `make` and `judge` do.
    """
    versions = dict(request.versions())
    made: dict[str, ModelFile] = {}
    found: dict[str, Prepared] = {}
    for profile in request.profiles:
        choice, failed = choices[profile.name], list[Judgement]()
        # Each round makes one more type, or the next better one takes the place of one that failed: so it ends.
        while True:
            name = choice.quantization
            if name not in made:
                made[name] = make(name)
                versions[name] = Version(spec=made[name].spec, is_estimate=False)
            if (again := _choose_again(request, profile, versions, failed)) != choice:
                size = format_bytes(versions[name].spec.file_bytes)
                context.progress.note(
                    f"{profile.name}: {name} came out at {size}; so {name_choice(again)}, not {name_choice(choice)}"
                )
                choice = again
                continue
            judged = judge(profile, made[name])
            if judged is None or not judged.failures:
                break
            failed.append(judged)
            choice = _choose_again(request, profile, versions, failed)
            context.progress.note(
                f"{profile.name}: {name} is past the gates ({'; '.join(judged.failures)}); so {name_choice(choice)}"
            )
        found[profile.name] = Prepared(
            model=made[name], choice=choice, quality=judged.quality if judged else None
        )
    return found


def _choose_again(
    request: ImageRequest,
    profile: DeviceProfile,
    versions: Mapping[str, Version],
    failed: Sequence[Judgement],
) -> Choice:
    """Take the best that fits and has better weights than all that is past a gate; the last one of those has the best.

    Raises:
        PlanError: Nothing fits.
        GateError: What has better weights does not fit, or was not asked for.
    """
    selection = request.selection(profile, versions)
    if not failed:
        return verify_selection(selection, model_name=request.model.spec.name)
    better = selection.better_weights(failed[-1].quality.quantization)
    asked = next((one for one in better if one.is_asked_for), None)
    if asked is None:
        raise _past_gates(request.model.spec, profile, failed, better)
    return asked.choice


def _past_gates(
    given: ModelSpec, profile: DeviceProfile, failed: Sequence[Judgement], better: Sequence[Candidate]
) -> GateError:
    """Say what is past the gates, and what is left; `better` fits and was not asked for."""
    last = failed[-1]
    name = last.quality.quantization
    message = f"{given.name} as {name} is past the gates of {profile.name}: {'; '.join(last.failures)}"
    if name == given.quantization:
        hint = "take a better model, or loosen the gates"
    elif better:
        following = max(better, key=lambda one: one.weights_loss).choice.quantization
        hint = f"take the next better type, --quantization {following}, or loosen the gates"
    else:
        message += "; no better type fits"
        hint = "take a smaller model, a profile that allows less context or a smaller cache (auto) or has more memory, or loosen the gates"
    return GateError(message, hint=hint, qualities=tuple(one.quality for one in failed))


def obtain_matrix(
    request: ImageRequest,
    model: ModelFile,
    choices: Mapping[str, Choice],
    *,
    engine: NativeEngine,
    context: Context,
) -> ImportanceMatrix | None:
    """Return the importance matrix that models are quantised by, computed now if it was not before; None for none.

    Raises:
        ModelError: It cannot be computed.
        ToolError: Computing failed.
    """
    spec, wanted = model.spec, request.importance
    if wanted is None or all(choice.quantization == spec.quantization for choice in choices.values()):
        return None
    return make_matrix(model, wanted, engine=engine, context=context)


def prepare_model(
    request: ImageRequest,
    model: ModelFile,
    target: str,
    *,
    matrix: ImportanceMatrix | None,
    engine: NativeEngine,
    context: Context,
) -> ModelFile:
    """Make the model what the image is to hold, from the store where that was done before.

    Raises:
        ModelError: llama.cpp refuses the model or the type.
        ToolError: Quantising failed, or the disk is full.
    """
    if target == model.spec.quantization:
        return model
    here = Platform.of_machine(context.host.machine)
    # What measures the model, or goes into an image for this machine, quantises it too.
    is_wanted = (request.importance is not None and request.importance.matrix is None) or any(
        profile.oci_platform == here or is_measured(request, profile) for profile in request.profiles
    )
    return quantize(
        model,
        target,
        library=lambda: engine.host_library(with_variants=is_wanted).tree,
        library_source=engine.library_source(),
        store=context.store,
        host=context.host,
        progress=context.progress,
        matrix=matrix,
    )


def frame_model(model: ModelFile, *, shard_bytes: int) -> tuple[ModelTar, ...]:
    """Frame the model's layers, bottom first: its files as they are, or one large file as shards.

    Args:
        model: The model as the image is to hold it.
        shard_bytes: A model in one file that is larger is cut into shards of this size; 0 cuts none.

    Raises:
        ModelError: The file cannot be cut.
        PlanError: There would be too many shards.
        ToolError: A file cannot be read.
    """
    file_name = model.spec.file_name
    contents: tuple[Path | Blob, ...] = model.files
    if not model.more and 0 < shard_bytes < model.spec.file_bytes:
        contents = cut_gguf(model.path, shard_bytes=shard_bytes)
    if len(contents) == 1:
        return (model_tar(contents[0], file_name),)
    names = shard_names(file_name.removesuffix(".gguf"), len(contents))
    return tuple(model_tar(content, str(name)) for content, name in zip(contents, names, strict=True))


def model_origin(
    model: ModelFile, target: str, quality: Quality | None, matrix: ImportanceMatrix | None
) -> ModelOrigin:
    """Tell where the model in the image comes from, and what became of it."""
    is_same = target == model.spec.quantization
    return ModelOrigin(
        source=model.source,
        source_quantization=model.spec.quantization,
        quantized_by="" if is_same else f"llama_model_quantize {target}",
        quality=quality,
        matrix=None
        if is_same or matrix is None
        else MatrixRecord(name=matrix.name, digest=matrix.digest, text=matrix.text, chunks=matrix.chunks),
    )

"""From a model to its quality, and from that to whether it may become an image."""

from collections.abc import Sequence
from dataclasses import replace

from edgebuild.engine.native import NativeEngine
from edgebuild.errors import UsageError
from edgebuild.gates import QualityGates, stricter
from edgebuild.model.evaluation.evaluate import Evaluator, Measures
from edgebuild.model.evaluation.inputs import (
    EvaluationText,
    default_calibration,
    default_tasks,
    default_text,
)
from edgebuild.model.importance import ImportanceMatrix
from edgebuild.model.quantize import quantize
from edgebuild.model.source import ModelFile
from edgebuild.model_spec import ModelSpec
from edgebuild.profile import DeviceProfile
from edgebuild.quality import Judgement, Quality, find_failures, quality_lines
from edgebuild.request import Context, EvaluationRequest, ImageRequest, ImportanceRequest


def is_measured(request: ImageRequest, profile: DeviceProfile) -> bool:
    """Tell whether the model in a profile's image is measured: somebody asked for it, or for a gate."""
    gates = _gates(request, profile)
    return request.evaluation.is_wanted or gates.needs_text or gates.needs_tasks


def verify_generates(model: ModelSpec, what: str) -> None:
    """Refuse to measure a model that embeds texts.

    Args:
        model: The model.
        what: Who asks for it.

    Raises:
        UsageError: It generates no text.
    """
    if model.embedder is not None:
        raise UsageError(
            f"{what}: {model.name} embeds texts, and only what generates them can be measured",
            hint="leave it out; compare the vectors of your own texts instead",
        )


def verify_measurable(request: ImageRequest) -> None:
    """Refuse gates that nothing could be held against, before any work.

    Raises:
        UsageError: A gate wants tasks or a 16-bit original, and there are none; or there is nothing to quantise by a matrix;
            or the model generates no text.
    """
    if request.evaluation.is_wanted:
        verify_generates(request.model.spec, "--eval")
    if request.importance is not None and request.importance.matrix is None:
        verify_generates(request.model.spec, "--imatrix auto")
    if request.importance is not None and not request.model.spec.is_unquantized:
        raise UsageError(
            f"--imatrix: {request.model.spec.file_name} is {request.model.spec.quantization} already and is not quantised",
            hint="leave --imatrix out, or give the 16-bit GGUF of this model",
        )
    for profile in request.profiles:
        gates = _gates(request, profile)
        if gates.needs_tasks or gates.needs_text:
            verify_generates(request.model.spec, f"gates of {profile.name}")
        if gates.needs_tasks and request.evaluation.tasks is None and not request.model.is_demo:
            raise UsageError(
                f"gates.exact_match of {profile.name} needs tasks, and this model has none of its own",
                hint='give --eval-tasks FILE, one {"prompt": "…", "expected": "…"} a line',
            )
        if gates.needs_text and not request.model.spec.is_unquantized:
            raise UsageError(
                f"gates of {profile.name} compare with a 16-bit original, and {request.model.spec.file_name} is {request.model.spec.quantization}",
                hint="give the 16-bit model, or leave gates.perplexity_increase and gates.kl_divergence out",
            )


def judge_model(
    request: ImageRequest,
    profile: DeviceProfile,
    model: ModelFile,
    *,
    given: ModelFile,
    engine: NativeEngine,
    context: Context,
) -> Judgement | None:
    """Measure the model of one image and hold it against the gates.

    Args:
        request: What was asked for.
        profile: The device.
        model: The model as it will be in the image.
        given: The model as it was given.
        engine: Has the library.
        context: This machine, the store and progress.

    Returns:
        What came of it; None when nobody asked.

    Raises:
        ModelError: It cannot be measured.
        ToolError: Measuring failed.
    """
    if not is_measured(request, profile):
        return None
    original = given if given.spec.is_unquantized else None
    gates, wanted = _gates(request, profile), request.evaluation
    measures = choose_measures(given, wanted)
    if not wanted.is_wanted:
        # Only what a gate asks for.
        measures = replace(
            measures,
            text=measures.text if gates.needs_text else None,
            tasks=measures.tasks if gates.needs_tasks else None,
        )
    if model.files != given.files:
        _warn_of_flattery(given, measures, request.importance, context)
    quality = make_evaluator(engine, context).measure(model, original, measures)
    failures = find_failures(quality, gates)
    # What is past a gate is shown as a table, with the others that were tried.
    for line in () if failures else quality_lines(quality):
        context.progress.note(f"{model.spec.name} as {quality.quantization}: {line}")
    return Judgement(quality=quality, failures=failures)


def choose_measures(model: ModelFile, wanted: EvaluationRequest) -> Measures:
    """Take what the user gave, else what ships with edgebuild."""
    is_demo = model.source.kind == "demo"
    return Measures(
        text=wanted.text or default_text(is_demo=is_demo),
        tasks=wanted.tasks or default_tasks(is_demo=is_demo),
        most_tokens=wanted.most_tokens,
    )


def make_evaluator(engine: NativeEngine, context: Context) -> Evaluator:
    """Make ready to measure on this machine."""
    return Evaluator(
        # With CPU variants: measuring runs the model, which quantising does not.
        library=lambda: engine.host_library(with_variants=True).tree,
        library_source=engine.library_source(),
        store=context.store,
        host=context.host,
        progress=context.progress,
    )


def make_matrix(
    model: ModelFile, wanted: ImportanceRequest, *, engine: NativeEngine, context: Context
) -> ImportanceMatrix:
    """Return the user's importance matrix, or compute one.

    Raises:
        ModelError: It cannot be computed.
        ToolError: Computing failed.
    """
    if wanted.matrix is not None:
        return wanted.matrix
    return make_evaluator(engine, context).collect(model, _calibration(model, wanted))


def judge_types(
    model: ModelFile,
    types: Sequence[str],
    measures: Measures,
    importance: ImportanceRequest | None,
    *,
    engine: NativeEngine,
    context: Context,
) -> tuple[Quality, ...]:
    """Quantise a model to each type and measure what comes of it, the original first.

    Args:
        model: A model in 16 bit; or a quantised one, which is measured alone.
        types: Types to make of it; its own is left out.
        measures: What is measured.
        importance: By which importance matrix it is quantised; None by none.
        engine: Has the library.
        context: This machine, the store and progress.

    Raises:
        ModelError: The model cannot be quantised or measured.
        ToolError: Quantising or measuring failed.
    """
    evaluator = make_evaluator(engine, context)
    if not model.spec.is_unquantized:
        return (evaluator.measure(model, None, measures),)
    _warn_of_flattery(model, measures, importance, context)
    found = [evaluator.measure(model, model, measures)]
    matrix = None if importance is None else make_matrix(model, importance, engine=engine, context=context)
    for target in types:
        if target == model.spec.quantization:
            continue
        made = quantize(
            model,
            target,
            library=lambda: engine.host_library(with_variants=True).tree,
            library_source=engine.library_source(),
            store=context.store,
            host=context.host,
            progress=context.progress,
            matrix=matrix,
        )
        found.append(evaluator.measure(made, model, measures))
    return tuple(found)


def _calibration(model: ModelFile, wanted: ImportanceRequest) -> EvaluationText:
    return wanted.text or default_calibration(is_demo=model.source.kind == "demo")


def _warn_of_flattery(
    model: ModelFile, measures: Measures, importance: ImportanceRequest | None, context: Context
) -> None:
    """Tell when a model is measured on what its importance matrix was computed from."""
    if importance is None or importance.matrix is not None or measures.text is None:
        return
    if _calibration(model, importance).digest == measures.text.digest:
        context.progress.note(
            f"{model.spec.name} is measured on {measures.text.name}, from which its importance matrix comes: the figures flatter it; give another --eval-text or --calibration"
        )


def _gates(request: ImageRequest, profile: DeviceProfile) -> QualityGates:
    return stricter(profile.gates, request.evaluation.gates)

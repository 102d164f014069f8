"""From profiles and a model to images: the only place where the steps are put together.

    profiles, model's header ──▶ (1) fit ──▶ (2) lock, the whole model ──▶ (3) quantise, measure ──▶ (4) plan ──▶ (5) layers ──▶ (6) images
                             ──▶ (7) smoke test ──▶ (8) index ──▶ (9) sign ──▶ (10) tags ──▶ check of the layout

Nothing has a name before the last step, and a layout takes effect when the checker has read it back, so whatever fails leaves the layout and the registry's tags as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild import __version__
from edgebuild.artifacts.checked import CheckedLayers
from edgebuild.artifacts.sources import Sources
from edgebuild.choice import Choice
from edgebuild.engine.native import EMULATOR, NativeEngine
from edgebuild.errors import ImageError, UsageError
from edgebuild.judging import is_measured, judge_model, judge_types, verify_measurable
from edgebuild.layering import put_layers
from edgebuild.locking import Need, obtain_lock
from edgebuild.model.evaluation.evaluate import Measures
from edgebuild.model.source import ModelFile
from edgebuild.oci.blob import Blob
from edgebuild.oci.image import Image, make_image, rfc3339
from edgebuild.oci.index import Index, make_index
from edgebuild.oci.layer import Role
from edgebuild.oci.layout import LayoutSink, read_layout
from edgebuild.oci.platform import Platform
from edgebuild.oci.referrers import SignatureSink
from edgebuild.plan import (
    ARTIFACTS,
    PREFIXES,
    VERSION_EPOCH_S,
    BuildPlan,
    make_labels,
    make_plan,
    make_run,
    model_identity,
    notes,
    software_roles,
)
from edgebuild.preparing import (
    choose,
    model_origin,
    obtain_matrix,
    prepare,
    prepare_model,
    verify_licence,
)
from edgebuild.profile import DeviceProfile
from edgebuild.quality import Judgement, Quality
from edgebuild.request import BuildResult, BuiltImage, Context, ImageRequest, ImportanceRequest, LockOptions
from edgebuild.sandbox import SandboxUnavailableError
from edgebuild.stopwatch import Stopwatch

if TYPE_CHECKING:
    from edgebuild.bench.result import BenchResult
    from edgebuild.smoke import SmokeResult


def build_images(request: ImageRequest, context: Context) -> BuildResult:
    """Build, test, index, sign and name the images of a request.

    Raises:
        EdgebuildError: Whatever stood in the way; nothing was named.
    """
    # (1) Refuse what cannot fit or must not be passed on before anything is built, or fetched.
    verify_licence(request)
    verify_measurable(request)
    choices = choose(request)

    # Where it goes is opened first too: what cannot be written is refused before the work, not after.
    with _open_sink(request, context) as sink:
        # (2) Settle which packages go in, and fetch what is not here of the model.
        watch = Stopwatch()
        with watch.step("lock"):
            engine = _open_engine(request.lock, _needed(request, choices, context), context)
        epoch_s = context.host.source_date_epoch_s
        if epoch_s is None:
            epoch_s = engine.lock.epoch_s or VERSION_EPOCH_S

        with watch.step("fetch"):
            given = request.model.load()

        # (3, 4) Quantise each type once, hold it against the gates, then plan with the true sizes.
        with watch.step("quantize"):
            matrix = obtain_matrix(request, given, choices, engine=engine, context=context)

        def make(target: str) -> ModelFile:
            with watch.step("quantize"):
                return prepare_model(request, given, target, matrix=matrix, engine=engine, context=context)

        def judge(profile: DeviceProfile, model: ModelFile) -> Judgement | None:
            with watch.step("measure"):
                return judge_model(request, profile, model, given=given, engine=engine, context=context)

        prepared = prepare(request, choices, make=make, judge=judge, context=context)
        plans: list[BuildPlan] = []
        for profile in request.profiles:
            one = prepared[profile.name]
            origin = model_origin(given, one.choice.quantization, one.quality, matrix)
            plans.append(make_plan(profile, one.model.spec, origin, epoch_s=epoch_s, choice=one.choice))
        plans.sort(key=lambda plan: plan.demand)
        for text in dict.fromkeys(note for plan in plans for note in notes(plan)):
            context.progress.note(text)

        # (5, 6, 7) Each image: layers, config, manifest; then it must run.
        built = []
        for plan in plans:
            model = prepared[plan.profile.name].model
            built.append(
                _build_image(
                    plan, model, engine=engine, sink=sink, request=request, context=context, watch=watch
                )
            )
            watch = Stopwatch()
        # (8) One index over all.
        index = make_index(
            tuple(item.image for item in built), annotations=_index_annotations(plans, epoch_s)
        )
        _publish(index, sink=sink, request=request)
    return BuildResult(index=index, images=tuple(built), model=given)


def _publish(index: Index, *, sink: SignatureSink, request: ImageRequest) -> None:
    sink.put_manifest(index.raw, index.descriptor)

    # (9) Signed before it has a name: nobody can pull it unsigned.
    if request.key is not None:
        from edgebuild.signing.sign import sign_image  # noqa: PLC0415 - unsigned builds do without cryptography

        sign_image(sink, index.digest, request.key, references=request.references, epoch_s=None)

    # (10) Names last, that of the whole after those of its parts.
    for reference in request.references:
        for image in index.images:
            sink.tag(image.descriptor, f"{reference.tag}-{image.profile}")
        sink.tag(index.descriptor, reference.tag)


def _needed(request: ImageRequest, choices: Mapping[str, Choice], context: Context) -> tuple[Need, ...]:
    """List what the build is going to use; `choices` are those of the profiles, by name."""
    here = Platform.of_machine(context.host.machine)
    needed = [
        Need(ARTIFACTS[role], profile.oci_platform, PREFIXES[role])
        for profile in request.profiles
        for role in software_roles(profile)
    ]
    runs_library = any(
        choice.quantization != request.model.spec.quantization for choice in choices.values()
    ) or any(is_measured(request, profile) for profile in request.profiles)
    needed += [Need(ARTIFACTS[Role.ENGINE], here)] if runs_library else []
    needed += [Need(EMULATOR, here)] if request.is_tested else []
    return tuple(dict.fromkeys(needed))


def _open_engine(options: LockOptions, needed: tuple[Need, ...], context: Context) -> NativeEngine:
    """Settle which packages go in, and make ready to build with them."""
    host, store, progress = context.host, context.store, context.progress
    sources = Sources(host=host, store=store, progress=progress, mirrors=options.mirrors)
    lock = obtain_lock(
        options.path,
        needed=needed,
        locked=options.locked,
        update=options.update,
        host=host,
        store=store,
        progress=progress,
        sources=sources,
    )
    return NativeEngine(lock=lock, sources=sources, store=store, host=host, progress=progress)


def _build_image(
    plan: BuildPlan,
    model: ModelFile,
    *,
    engine: NativeEngine,
    sink: SignatureSink,
    request: ImageRequest,
    context: Context,
    watch: Stopwatch,
) -> BuiltImage:
    put = put_layers(plan, model, engine=engine, sink=sink, request=request, context=context, watch=watch)
    model_digest = model_identity(tuple(file.diff_id for file in put.files))
    image = make_image(
        profile=plan.profile.name,
        platform=plan.profile.oci_platform,
        layers=put.layers,
        run=make_run(plan, model_digest=model_digest),
        annotations=make_labels(plan, model_digest=model_digest),
        epoch_s=plan.epoch_s,
    )
    smoke = None
    if request.is_tested:
        with watch.step("smoke"):
            try:
                smoke = test_image(image, engine=engine, context=context)
            except SandboxUnavailableError as error:
                context.progress.note(f"{image.profile} was not tested: {error.message} ({error.hint})")
    sink.put_blob(Blob.of_bytes(image.config), digest=image.config_digest, title="config")
    sink.put_manifest(image.manifest, image.descriptor)
    return BuiltImage(image=image, plan=plan, engine=engine.name, smoke=smoke, seconds=watch.seconds())


def evaluate_types(
    model: ModelFile,
    types: Sequence[str],
    measures: Measures,
    importance: ImportanceRequest | None,
    options: LockOptions,
    context: Context,
) -> tuple[Quality, ...]:
    """Measure a model and what quantising makes of it.

    Args:
        model: The model; a quantised one is measured alone.
        types: Types to quantise it to.
        measures: What is measured.
        importance: By which importance matrix it is quantised; None by none.
        options: How the engine's sources are chosen.
        context: This machine, the store and progress.

    Raises:
        ModelError: The model cannot be quantised or measured.
        ToolError: Quantising or measuring failed.
    """
    here = Platform.of_machine(context.host.machine)
    engine = _open_engine(options, (Need(ARTIFACTS[Role.ENGINE], here),), context)
    return judge_types(model, types, measures, importance, engine=engine, context=context)


def test_image(image: Image, *, engine: NativeEngine, context: Context) -> SmokeResult:
    """Start one image on its profile's processor model and ask it a question."""
    from edgebuild.smoke import smoke_test  # noqa: PLC0415 - builds that test nothing do without the HTTP client

    qemu = engine.emulator(image.platform)
    with context.store.workplace("smoke") as scratch:
        return smoke_test(image, qemu=qemu, scratch=scratch, host=context.host, progress=context.progress)


def test_layout(
    path: Path, profiles: tuple[str, ...], options: LockOptions, context: Context
) -> tuple[tuple[Image, SmokeResult], ...]:
    """Start the images of a layout and ask each a question.

    Args:
        path: The layout.
        profiles: Which images; empty means all.
        options: How the emulator's package is chosen.
        context: This machine, the store and progress.

    Raises:
        ImageError: An image is missing, or does not start, answer, choose the right variant or stop.
    """
    images = _images(path, profiles)
    engine = _open_engine(options, (Need(EMULATOR, Platform.of_machine(context.host.machine)),), context)
    return tuple((image, test_image(image, engine=engine, context=context)) for image in images)


def bench_layout(path: Path, profile: str | None, arguments: Sequence[str], context: Context) -> BenchResult:
    """Have one image of a layout measure itself on this machine.

    Args:
        path: The layout.
        profile: Which image; None takes the only one that this machine can run.
        arguments: Arguments of `edgeserve bench`.
        context: This machine, the store and progress.

    Raises:
        ImageError: There is no such image, or it does not run.
        UsageError: Several could be meant.
    """
    from edgebuild.bench.native import bench_image  # noqa: PLC0415 - nothing else measures images

    images = _images(path, () if profile is None else (profile,))
    here = Platform.of_machine(context.host.machine)
    # If none runs here, the first one says why.
    chosen = [image for image in images if image.platform == here] or list(images[:1])
    if len(chosen) > 1:
        names = ", ".join(image.profile for image in chosen)
        raise UsageError(
            f"{path} holds several images that run here: {names}", hint="choose one with --profile"
        )
    with context.store.workplace("bench") as scratch:
        return bench_image(
            chosen[0], arguments, scratch=scratch, host=context.host, progress=context.progress
        )


def _images(path: Path, profiles: tuple[str, ...]) -> tuple[Image, ...]:
    """Read the images of a layout that are for `profiles`, or all where none is named."""
    images = read_layout(path).index().images
    known = {image.profile: image for image in images}
    if missing := [name for name in profiles if name not in known]:
        raise ImageError(f"{path} holds no image for {missing[0]!r}", hint=f"it holds {', '.join(known)}")
    return tuple(image for image in images if not profiles or image.profile in profiles)


@contextmanager
def _open_sink(request: ImageRequest, context: Context) -> Iterator[SignatureSink]:
    if request.output is None:
        with _open_registry(request, context) as registry:
            yield registry
        return
    if request.push:
        # The layout is pushed when it is complete; a login that is missing is told now.
        with _open_registry(request, context):
            pass
    with LayoutSink(
        request.output,
        progress=context.progress,
        seals=context.store,
        reference=request.reference,
        checked=CheckedLayers(context.store),
    ) as layout:
        yield layout


@contextmanager
def _open_registry(request: ImageRequest, context: Context) -> Iterator[SignatureSink]:
    """Open the registry that the request names, once it is sure that we may push."""
    from edgebuild.registry.push import open_sink  # noqa: PLC0415 - layouts do without the HTTP client

    if request.reference is None:
        raise UsageError("nowhere to write to", hint="give --output DIR, or --push with --tag")
    environment = context.host.environment
    with open_sink(request.reference, environment=environment, progress=context.progress) as registry:
        registry.check_access()
        yield registry


def _index_annotations(plans: list[BuildPlan], epoch_s: int) -> dict[str, str]:
    names = ", ".join(plan.profile.name for plan in plans)
    return {
        "org.opencontainers.image.created": rfc3339(epoch_s),
        "org.opencontainers.image.title": f"{plans[0].model.name} for {names}",
        "dev.edgebuild.version": __version__,
    }

"""`edgebuild image`: the whole way from profile and model to a signed image."""

import shlex
import shutil
import sys
from pathlib import Path

import click

from edgebuild.artifacts.store import Store
from edgebuild.choice import wanted_types
from edgebuild.cli.evaluation import (
    evaluation_options,
    gather_evaluation,
    gather_importance,
    importance_options,
    render_qualities,
)
from edgebuild.cli.options import Session, common_options
from edgebuild.cli.passwords import load_key, password_option
from edgebuild.cli.project import find_project, gather_wishes, project_option
from edgebuild.cli.quantization import quantization_option
from edgebuild.cli.report import build_document, render_build
from edgebuild.cli.selection import render_selection
from edgebuild.errors import PlanError, UsageError
from edgebuild.model.source import find_model
from edgebuild.oci.layout import read_layout
from edgebuild.oci.reference import Reference
from edgebuild.pipeline import build_images
from edgebuild.quality import GateError
from edgebuild.request import BuildResult, Context, ImageRequest, LockOptions


@click.command(name="image")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME|FILE",
    help="Device profile; several make one index.",
)
@click.option(
    "--model",
    metavar="MODEL",
    help="Model to bake in: a GGUF file, a checkpoint's folder, hf://ORG/REPO, https://…#sha256=…, oci://REGISTRY/REPO. [default: demo]",
)
@quantization_option
@click.option(
    "--shard-size",
    metavar="SIZE|none",
    help="A model in one file that is larger becomes shards of this size, a layer each. [default: 1GiB]",
)
@click.option("--output", metavar="DIR", help="Folder of the OCI layout. [default: build]")
@click.option("--no-layout", is_flag=True, help="With --push: write to the registry only.")
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="HOST/REPO:TAG",
    help="Name of the image; profiles are TAG-<profile>. Several are names of one repository.",
)
@click.option("--push", is_flag=True, help="Push to the registry that --tag names.")
@click.option("--sign", "key", metavar="KEY", help="Sign with this private key.")
@password_option
@click.option(
    "--engine",
    type=click.Choice(("auto", "native")),
    default="auto",
    show_default=True,
    help="How the recipes are run.",
)
@click.option("--no-test", is_flag=True, help="Leave the smoke test out.")
@click.option(
    "--eval",
    "is_evaluated",
    is_flag=True,
    help="Measure the quantised model; gates do it without being asked.",
)
@evaluation_options
@importance_options
@click.option(
    "--lock",
    "lock_file",
    default="edgebuild.lock",
    show_default=True,
    metavar="FILE",
    help="Lock file: the packages that go in.",
)
@click.option("--locked", is_flag=True, help="Refuse anything that the lock file does not hold.")
@click.option("--update-lock", is_flag=True, help="Take the current packages, whatever the lock file holds.")
@click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="URL",
    help="Debian mirror, instead of those that apt uses; may be given several times.",
)
@project_option
@common_options
def command(
    session: Session,
    project: str | None,
    profiles: tuple[str, ...],
    model: str | None,
    quantization: str | None,
    shard_size: str | None,
    output: str | None,
    no_layout: bool,
    tags: tuple[str, ...],
    push: bool,
    key: str | None,
    password_file: str | None,
    engine: str,
    no_test: bool,
    is_evaluated: bool,
    eval_text: str | None,
    eval_tasks: str | None,
    eval_tokens: int,
    imatrix: str | None,
    calibration: str | None,
    lock_file: str,
    locked: bool,
    update_lock: bool,
    mirrors: tuple[str, ...],
) -> None:
    """Build a signed image for one or more devices.

    Reads the profiles, quantises the model to fit, puts one image per profile together, checks that each runs and
    answers, and writes them as an OCI layout or to a registry.
    """
    host = session.host
    _refuse_nonsense(no_layout=no_layout, output=output, push=push, locked=locked, update_lock=update_lock)
    wishes = gather_wishes(
        find_project(project, session=session),
        profiles=profiles,
        model=model,
        tags=tags,
        key=key,
        shard_size=shard_size,
        session=session,
    )
    if not wishes.named:
        raise UsageError(
            "neither --profile nor a project file says for which device",
            hint="give --profile NAME, or write a project file: edgebuild init",
        )
    if push and not wishes.references:
        raise UsageError(
            "--push needs a name to push to", hint="add --tag HOST/REPO:TAG, or registry to the project file"
        )
    evaluation = gather_evaluation(
        is_wanted=is_evaluated,
        text=eval_text,
        tasks=eval_tasks,
        tokens=eval_tokens,
        gates=wishes.gates,
        session=session,
    )
    key = wishes.key
    signer = load_key(key, password_file, session=session)
    store = Store(host.cache_directory, progress=session.progress)
    layout = None if no_layout else host.path(output or "build")
    importance = gather_importance(imatrix, calibration, session=session)
    with find_model(
        wishes.model,
        wanted=wanted_types(wishes.profiles, override=quantization),
        host=host,
        store=store,
        progress=session.progress,
        may_set_up=not locked,
    ) as found:
        request = ImageRequest(
            profiles=wishes.profiles,
            model=found,
            quantization=quantization,
            shard_bytes=wishes.shard_bytes,
            output=layout,
            references=wishes.references,
            push=push,
            lock=LockOptions(path=host.path(lock_file), locked=locked, update=update_lock, mirrors=mirrors),
            is_tested=not no_test,
            licence_required=wishes.licence_required,
            evaluation=evaluation,
            importance=importance,
            key=signer,
            key_name=Path(key).name if key else "",
            engine=engine,
        )
        _show_fit(request, session)
        result = _build(request, store, session)
    if push and layout is not None:
        for reference in wishes.references:
            _push(layout, reference, session)
    session.give(build_document(result, request))
    session.say(render_build(result, request))
    session.say(_next_steps(result, request, (key, password_file), host.machine))


def _build(request: ImageRequest, store: Store, session: Session) -> BuildResult:
    try:
        return build_images(request, Context(host=session.host, store=store, progress=session.progress))
    except GateError as error:
        if not session.quiet:
            click.echo(render_qualities(error.qualities), err=True)
        raise


def _push(layout: Path, target: Reference, session: Session) -> None:
    from edgebuild.registry.layouts import push_layout  # noqa: PLC0415 - only pushes need the HTTP client
    from edgebuild.registry.push import open_sink  # noqa: PLC0415 - as above

    with open_sink(target, environment=session.host.environment, progress=session.progress) as sink:
        push_layout(read_layout(layout), target, sink=sink, progress=session.progress)


def _refuse_nonsense(
    *, no_layout: bool, output: str | None, push: bool, locked: bool, update_lock: bool
) -> None:
    if no_layout and not push:
        raise UsageError(
            "--no-layout without --push would leave nothing",
            hint="add --push and --tag, or leave --no-layout out",
        )
    if no_layout and output is not None:
        raise UsageError("--no-layout and --output contradict each other", hint="leave one of them out")
    if locked and update_lock:
        raise UsageError("--locked and --update-lock contradict each other", hint="leave one of them out")


def _show_fit(request: ImageRequest, session: Session) -> None:
    """Show the arithmetic of what does not fit, before the refusal, and what is chosen where there is a choice."""
    if session.quiet:
        return
    try:
        versions = request.versions()
        selections = [request.selection(profile, versions) for profile in request.profiles]
    except PlanError:
        return  # the build says it, with its hint
    for selection in selections:
        if selection.chosen is None or selection.is_auto:
            click.echo(render_selection(selection, model_name=request.model.spec.name), err=True)


def _next_steps(
    result: BuildResult, request: ImageRequest, signing: tuple[str | None, str | None], machine: str
) -> str:
    """Tell how to run, verify and push what was built, as it can be typed here."""
    first, (key, password_file) = result.images[0], signing
    name, profile = first.plan.model.name.lower(), first.image.profile
    port, command = first.plan.profile.server.port, _command()
    run = f"docker run --rm --read-only -p {port}:{port}"
    private = shlex.quote(_shown(Path(key))) if key else ""
    public = shlex.quote(_shown(Path(key).with_suffix(".pub"))) if key else ""
    # An image of another processor runs on the device, not here.
    device = "" if first.image.platform.machine == machine else "ssh DEVICE "
    lines = ["", "Next:"]
    if request.output is not None:
        layout = shlex.quote(_shown(request.output))
        lines.append(
            f"  run      {command} archive {layout} --profile {profile} | {device}docker load && {device}{run} {name}:{profile}"
        )
        if key:
            lines.append(f"  verify   {command} verify {layout} --key {public}")
        if not request.push:
            sign = f" --sign {private}" if key else ""
            password = f" --password-file {shlex.quote(password_file)}" if key and password_file else ""
            lines.append(
                f"  push     {command} push {layout} registry.example.com/acme/{name}:1.0{sign}{password}"
            )
    if request.push and request.reference is not None:
        lines.append(f"  run      {device}{run} {request.reference}-{profile}")
        if key:
            lines.append(f"  verify   {command} verify {request.reference} --key {public}")
    return "\n".join(lines)


def _command() -> str:
    """Name this program as it can be typed here: a virtual environment's bin folder is seldom on PATH."""
    program = Path(sys.argv[0])
    return program.name if shutil.which(program.name) is not None else shlex.quote(_shown(program.absolute()))


def _shown(path: Path) -> str:
    """Show a path as short as it can be written from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

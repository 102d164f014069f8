"""Where a model comes from: a file or folder on this machine, a hub, the web, a registry, or the demo model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.data import data_path
from edgebuild.errors import ModelError
from edgebuild.gguf_joined import read_joined_header
from edgebuild.host import Host
from edgebuild.model.fetched import Fetched
from edgebuild.model.found import Found
from edgebuild.model.hashing import file_digest
from edgebuild.model.header import Beginning, UnknownSizeError, fetch_beginning
from edgebuild.model.local import find_local_model
from edgebuild.model.reference import (
    HubReference,
    LocalReference,
    ModelReference,
    RegistryReference,
    WebReference,
    parse_model_reference,
)
from edgebuild.model_spec import ModelSpec, make_model_spec, whole_file_name
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import Seals
from edgebuild.plan import ModelSource
from edgebuild.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model on this machine.

    Attributes:
        path: Absolute path of the GGUF file.
        spec: What its header says; its licence is the source's where the header names none.
        source: Where it came from.
        more: Of a model in several files, the others in order.
    """

    path: Path
    spec: ModelSpec
    source: ModelSource
    more: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All of its files, in order."""
        return (self.path, *self.more)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model that was found; of one that lies elsewhere maybe the header alone is here.

    Attributes:
        spec: What its header says.
        place: Where it lies, for messages.
        is_demo: Whether it is the demo model.
        load: Gives all of it, fetching what is not here; raises as `load_model` does.
    """

    spec: ModelSpec
    place: str
    is_demo: bool
    load: Callable[[], ModelFile]


@contextmanager
def find_model(
    reference: str,
    *,
    wanted: tuple[str, ...],
    host: Host,
    store: Store,
    progress: Progress,
    may_set_up: bool = True,
) -> Iterator[FoundModel]:
    """Find a model and read its header, fetching no more than that; the rest can be had while the context lasts.

    Arguments and errors are those of `load_model`.
    """
    asked = parse_model_reference(reference)
    with ExitStack() as stack:
        found = stack.enter_context(
            _finding(asked, wanted=wanted, host=host, store=store, progress=progress, may_set_up=may_set_up)
        )
        is_demo, reason = asked == LocalReference(path=""), found.reason
        if any(store.find_download(file.digest, file.name) is None for file in found.files):
            folder = stack.enter_context(store.workplace("header"))
            try:
                beginning = fetch_beginning(found, folder, progress=progress)
            except UnknownSizeError as error:
                reason = str(error)
            else:
                yield FoundModel(
                    spec=beginning.spec,
                    place=found.place,
                    is_demo=is_demo,
                    load=lambda: _load_rest(found, beginning),
                )
                return
        if reason:
            progress.note(f"{reference}: {reason}; fetching all of it")
        model = _load(found, {})
        yield FoundModel(spec=model.spec, place=found.place, is_demo=is_demo, load=lambda: model)


def load_model(
    reference: str,
    *,
    wanted: tuple[str, ...],
    host: Host,
    store: Store,
    progress: Progress,
    may_set_up: bool = True,
) -> ModelFile:
    """Find or fetch a model and read its header.

    Args:
        reference: A path; "demo"; hf://ORG/REPO[@REVISION][/FILE]; https://…#sha256=…; oci://REGISTRY/REPO[:TAG|@DIGEST].
        wanted: Types that the devices want, each once: they decide between several files.
        host: For relative paths, and the environment's proxies, tokens and logins.
        store: Takes what is fetched.
        progress: Told of the bytes.
        may_set_up: Whether what converting a checkpoint needs may be fetched.

    Raises:
        UsageError: The reference is of no such form.
        ModelError: It is not there, or is no usable GGUF file.
        ToolError: It cannot be fetched, or is not what was asked for.
        RegistryError: The registry refused, failed or lied.
    """
    asked = parse_model_reference(reference)
    with _finding(
        asked, wanted=wanted, host=host, store=store, progress=progress, may_set_up=may_set_up
    ) as found:
        return _load(found, {})


def _load(found: Found, begun: Mapping[Digest, Path]) -> ModelFile:
    fetched = found.fetch(begun)
    source = fetched.source
    # A converted file lies in the store under its own name; the source has files of other names.
    name = fetched.path.name if source.conversion else whole_file_name(source.file)
    spec = make_model_spec(read_joined_header(fetched.files), file_name=name)
    spec = replace(spec, licence=spec.licence or source.licence)
    return ModelFile(path=fetched.path, spec=spec, source=source, more=fetched.more)


def _load_rest(found: Found, beginning: Beginning) -> ModelFile:
    """Fetch what follows a beginning, by which it was decided to do so."""
    model = _load(found, beginning.files)
    if model.spec != beginning.spec:
        raise ModelError(
            f"{found.place}: the beginning that came first was that of another file",
            hint="try again; if it stays so, the server or a proxy is damaged or hostile",
        )
    return model


@contextmanager
def _finding(
    reference: ModelReference,
    *,
    wanted: tuple[str, ...],
    host: Host,
    store: Store,
    progress: Progress,
    may_set_up: bool,
) -> Iterator[Found]:
    # Each way to the network imports an HTTP client, which files do without.
    match reference:
        case LocalReference(path=""):
            path = demo_model_path()
            source = ModelSource(kind="demo", reference="demo", file=path.name)
            yield Found(place="demo", fetch=lambda _: Fetched(path=path, source=source))
        case LocalReference(path=text):
            fetched = find_local_model(
                host.path(text),
                wanted=wanted,
                host=host,
                store=store,
                progress=progress,
                may_set_up=may_set_up,
            )
            yield Found(place=fetched.source.reference, fetch=lambda _: fetched)
        case HubReference():
            from edgebuild.model.hub import find_hub_model  # noqa: PLC0415 - see above

            yield find_hub_model(
                reference, wanted=wanted, host=host, store=store, progress=progress, may_set_up=may_set_up
            )
        case WebReference():
            from edgebuild.model.web import find_web_model  # noqa: PLC0415 - see above

            yield find_web_model(reference, host=host, store=store, progress=progress)
        case RegistryReference():
            from edgebuild.model.artifact import finding_registry_model  # noqa: PLC0415 - see above

            with finding_registry_model(
                reference, wanted=wanted, host=host, store=store, progress=progress
            ) as found:
                yield found


def model_digest(model: ModelFile, *, seals: Seals, progress: Progress) -> Digest:
    """Return the sha256 of a model's file; of several files, a digest that is theirs alone.

    Raises:
        ModelError: One cannot be read.
    """
    digests = [file_digest(path, seals=seals, progress=progress) for path in model.files]
    return digests[0] if len(digests) == 1 else Digest.of(canonical_json([str(digest) for digest in digests]))


def demo_model_path() -> Path:
    """Return the absolute path of the demo model, in 16 bit.

    Raises:
        ModelError: This installation lacks it.
    """
    found = sorted((data_path("images") / "demo-model").glob("*.gguf"))
    if not found:
        raise ModelError(
            "the demo model is not part of this installation", hint="give a model with --model FILE.gguf"
        )
    return found[0]

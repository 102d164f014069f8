"""Where a model comes from: a file or folder on this machine, a hub, the web, a registry, or the demo model."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.data import data_path
from edgebuild.errors import ModelError
from edgebuild.gguf_joined import find_shards, is_one_of_several, read_joined_header
from edgebuild.host import Host
from edgebuild.model.checkpoint import conversion_missing, find_checkpoint
from edgebuild.model.fetched import Fetched
from edgebuild.model.reference import (
    HubReference,
    LocalReference,
    ModelReference,
    RegistryReference,
    WebReference,
    parse_model_reference,
)
from edgebuild.model.selection import choose_files
from edgebuild.model_spec import ModelSpec, make_model_spec, whole_file_name
from edgebuild.oci.blob import CHUNK_BYTES
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import WHOLE_FILE, Seals
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


def load_model(
    reference: str, *, wanted: tuple[str, ...], host: Host, store: Store, progress: Progress
) -> ModelFile:
    """Find or fetch a model and read its header.

    Args:
        reference: A path; "demo"; hf://ORG/REPO[@REVISION][/FILE]; https://…#sha256=…; oci://REGISTRY/REPO[:TAG|@DIGEST].
        wanted: Types that the devices want, each once: they decide between several files.
        host: For relative paths, and the environment's proxies, tokens and logins.
        store: Takes what is fetched.
        progress: Told of the bytes.

    Raises:
        UsageError: The reference is of no such form.
        ModelError: It is not there, or is no usable GGUF file.
        ToolError: It cannot be fetched, or is not what was asked for.
        RegistryError: The registry refused, failed or lied.
    """
    fetched = _fetch(
        parse_model_reference(reference), wanted=wanted, host=host, store=store, progress=progress
    )
    source = fetched.source
    for path, (_, sha256) in zip(fetched.files, source.files or ((source.file, source.sha256),), strict=True):
        # It was compared as it arrived, so that quantising need not hash it again.
        if sha256 and store.known_digest(path, WHOLE_FILE) is None:
            store.remember_digest(path, WHOLE_FILE, Digest(sha256))
    spec = make_model_spec(read_joined_header(fetched.files), file_name=whole_file_name(source.file))
    spec = replace(spec, licence=spec.licence or source.licence)
    return ModelFile(path=fetched.path, spec=spec, source=source, more=fetched.more)


def _fetch(
    reference: ModelReference, *, wanted: tuple[str, ...], host: Host, store: Store, progress: Progress
) -> Fetched:
    # Each way to the network imports an HTTP client, which files do without.
    match reference:
        case LocalReference(path=""):
            path = demo_model_path()
            return Fetched(path=path, source=ModelSource(kind="demo", reference="demo", file=path.name))
        case LocalReference(path=text):
            path, *more = _find_local(host.path(text), wanted)
            files = tuple((item.name, "") for item in (path, *more)) if more else ()
            source = ModelSource(kind="file", reference=path.name, file=path.name, files=files)
            return Fetched(path=path, source=source, more=tuple(more))
        case HubReference():
            from edgebuild.model.hub import fetch_hub_model  # noqa: PLC0415 - see above

            return fetch_hub_model(reference, wanted=wanted, host=host, store=store, progress=progress)
        case WebReference():
            from edgebuild.model.web import fetch_web_model  # noqa: PLC0415 - see above

            return fetch_web_model(reference, host=host, store=store, progress=progress)
        case RegistryReference():
            from edgebuild.model.artifact import fetch_registry_model  # noqa: PLC0415 - see above

            return fetch_registry_model(reference, wanted=wanted, host=host, store=store, progress=progress)


def _find_local(path: Path, wanted: tuple[str, ...]) -> tuple[Path, ...]:
    """Find the GGUF files that a path means: itself and those that belong to it, or a model in a folder."""
    if not path.is_dir():
        if not path.exists():
            raise ModelError(
                f"{path}: no such model",
                hint="give the path of a .gguf file, hf://ORG/REPO, https://…#sha256=…, oci://REGISTRY/REPO, or `demo`",
            )
        # Only what is named as one of several has others beside it.
        beside = _list(path.parent) if is_one_of_several(path.name) else ()
        names = find_shards(beside, path.name, place=str(path.parent))
        return tuple(path.parent / name for name in names)
    files = _list(path)
    names = choose_files(files, wanted=wanted, place=str(path), hint=f"name the file: {path}/{{file}}")
    if not names:
        find_checkpoint(files, place=str(path))
        raise conversion_missing(str(path))
    return tuple(path / name for name in names)


def _list(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(item.name for item in folder.iterdir() if item.is_file())
    except OSError as error:
        raise ModelError(
            f"{folder}: cannot be read: {error.strerror}", hint="check its permissions"
        ) from error


def file_digest(path: Path, *, seals: Seals, progress: Progress) -> Digest:
    """Return the sha256 of a model's file, hashed once as long as the file does not change.

    Raises:
        ModelError: It cannot be read.
    """
    known = seals.known_digest(path, WHOLE_FILE)
    if known is not None:
        return known
    state = hashlib.sha256()
    try:
        with (
            path.open("rb") as file,
            progress.task(f"hash {path.name}", total_bytes=path.stat().st_size) as task,
        ):
            while chunk := file.read(CHUNK_BYTES):
                state.update(chunk)
                task.advance(len(chunk))
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror}", hint="check the file and its permissions"
        ) from error
    digest = Digest(state.hexdigest())
    seals.remember_digest(path, WHOLE_FILE, digest)
    return digest


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

"""What a model is like, from its header alone: of one that lies elsewhere the weights are not fetched.

1. What the store has is read there.
2. Otherwise the beginning of each file is fetched, more of it as long as the header goes on; the file that is read is as
   long as the true one, with nothing behind its beginning.
3. A server that does not tell a file's length, and a file packed in another, leave no other way than to fetch all of it.

Nobody compares a beginning with the whole file's hash: good for looking, and whoever builds fetches and compares it all.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError
from edgebuild.gguf import MAGIC, read_gguf_header
from edgebuild.gguf_joined import read_joined_header
from edgebuild.host import Host
from edgebuild.model.reference import (
    HubReference,
    LocalReference,
    RegistryReference,
    WebReference,
    parse_model_reference,
)
from edgebuild.model.source import load_model
from edgebuild.model_spec import ModelSpec, gguf_file_name, make_model_spec, whole_file_name
from edgebuild.oci.digest import Digest
from edgebuild.progress import Progress

if TYPE_CHECKING:
    from edgebuild.artifacts.download import Wanted
    from edgebuild.model.artifact import OpenedModel
    from edgebuild.model.located import Located
    from edgebuild.oci.descriptor import Descriptor

# Vocabularies of 150 000 tokens make headers of 5 to 8 MB, small ones some 100 KB.
_FIRST_BYTES = 1 << 20
# Larger than any real header, so that a file which is none costs no more.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remote:
    """A file of a model that lies elsewhere.

    Attributes:
        name: Its name.
        digest: Its sha256.
        extend: Appends to a file what it lacks of the first so many bytes; returns the whole size, or None if unknown.
    """

    name: str
    digest: Digest
    extend: Callable[[Path, int], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A model that lies elsewhere.

    Attributes:
        files: Its files, in order; empty where they can only be fetched whole.
        licence: Gives it as the source states it, or ""; may ask the source.
        reason: Why they can only be fetched whole.
    """

    files: tuple[_Remote, ...]
    licence: Callable[[], str]
    reason: str = ""


class _UnknownSizeError(Exception):
    """A server does not tell how long a file is."""


def load_model_spec(
    reference: str, *, wanted: tuple[str, ...], host: Host, store: Store, progress: Progress
) -> ModelSpec:
    """Find a model and read its header, fetching no more than that.

    Arguments and errors are those of `load_model`.
    """
    parsed = parse_model_reference(reference)
    reason = ""
    if not isinstance(parsed, LocalReference):
        with _finding(parsed, wanted=wanted, host=host, store=store, progress=progress) as found:
            is_stored = found.files and all(
                store.find_download(file.digest, file.name) for file in found.files
            )
            reason = found.reason
            if found.files and not is_stored:
                try:
                    return _read(found, store=store, progress=progress)
                except _UnknownSizeError as error:
                    reason = str(error)
    if reason:
        progress.note(f"{reference}: {reason}; fetching all of it")
    return load_model(reference, wanted=wanted, host=host, store=store, progress=progress).spec


def _read(found: _Found, *, store: Store, progress: Progress) -> ModelSpec:
    names = [file.name for file in found.files]
    with store.workplace("header") as folder, progress.task(f"header of {names[0]}"):
        paths = [folder / name for name in names]
        try:
            for file, path in zip(found.files, paths, strict=True):
                _fetch_header(file, path)
            header = read_joined_header(paths)
        except ModelError as error:
            # It is no file of this machine.
            raise ModelError(error.message.replace(f"{folder}/", ""), hint=error.hint) from error
    spec = make_model_spec(header, file_name=whole_file_name(names[0]))
    return replace(spec, licence=spec.licence or found.licence())


def _fetch_header(file: _Remote, path: Path) -> None:
    """Fetch until the header is whole, and make the file as long as the true one."""
    upto = _FIRST_BYTES
    while True:
        size = file.extend(path, upto)
        if size is None:
            raise _UnknownSizeError(f"the server does not tell how long {file.name} is")
        have = path.stat().st_size
        os.truncate(path, size)
        fault = _incompleteness(path, have)
        if fault is None or not _begins_as_gguf(path):
            return
        if have >= min(size, _MOST_BYTES):
            raise fault
        os.truncate(path, have)
        upto = min(2 * upto, size)


def _incompleteness(path: Path, have_bytes: int) -> ModelError | None:
    """Say why no header is within the file's first bytes; what lies behind them reads as zeros."""
    try:
        header = read_gguf_header(path)
    except ModelError as error:
        return error
    # In zeros no header ends unnoticed but for its last numbers: a tensor has dimensions.
    if header.header_bytes <= have_bytes:
        return None
    return ModelError(
        f"{path}: the header is larger than any real model's",
        hint="give the GGUF file of a text model, made by a current llama.cpp",
    )


def _begins_as_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def _finding(
    reference: HubReference | WebReference | RegistryReference,
    *,
    wanted: tuple[str, ...],
    host: Host,
    store: Store,
    progress: Progress,
) -> Iterator[_Found]:
    # Each way to the network imports an HTTP client, which files do without.
    match reference:
        case RegistryReference():
            from edgebuild.model.artifact import open_registry_model  # noqa: PLC0415 - see above

            with open_registry_model(reference, wanted=wanted, host=host, progress=progress) as opened:
                if opened.is_packed:
                    yield _Found(files=(), licence=lambda: "", reason="its files are packed in others")
                    return

                yield _in_registry(opened)
        case HubReference():
            from edgebuild.model.hub import locate_hub_model  # noqa: PLC0415 - see above

            located = locate_hub_model(reference, wanted=wanted, host=host, store=store, progress=progress)
            yield _behind_addresses(located, host)
        case WebReference():
            from edgebuild.model.web import locate_web_model  # noqa: PLC0415 - see above

            yield _behind_addresses(locate_web_model(reference), host)


def _in_registry(opened: "OpenedModel") -> _Found:
    def extend(layer: "Descriptor") -> Callable[[Path, int], int | None]:
        return lambda into, upto: opened.fetch_beginning(layer, into, upto=upto)

    return _Found(
        files=tuple(
            _Remote(name=gguf_file_name(name.rpartition("/")[2]), digest=layer.digest, extend=extend(layer))
            for name, layer in opened.chosen
        ),
        licence=opened.licence,
    )


def _behind_addresses(located: "Located", host: Host) -> _Found:
    from edgebuild.artifacts.beginning import fetch_beginning  # noqa: PLC0415 - see above

    def extend(file: "Wanted") -> Callable[[Path, int], int | None]:
        return lambda into, upto: fetch_beginning(file, into, upto=upto, environment=host.environment)

    return _Found(
        files=tuple(
            _Remote(name=file.file, digest=file.digest, extend=extend(file)) for file in located.files
        ),
        licence=lambda: located.source.licence,
        reason="" if located.files else "it is a checkpoint, which is converted",
    )

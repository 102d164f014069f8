"""What a model is like, from its header alone: of one that lies elsewhere the weights are not fetched.

1. The beginning of each file is fetched, more of it as long as the header goes on; the file that is read is as long as
   the true one, with nothing behind its beginning.
2. A server that does not tell a file's length leaves no other way than to fetch all of it.

Nobody compares a beginning with the whole file's hash: good for deciding whether to fetch the rest, which is then compared
with all that came before it.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from edgebuild.errors import ModelError
from edgebuild.gguf import MAGIC, read_gguf_header
from edgebuild.gguf_joined import read_joined_header
from edgebuild.model.found import Found, RemoteFile
from edgebuild.model_spec import ModelSpec, make_model_spec, whole_file_name
from edgebuild.oci.digest import Digest
from edgebuild.progress import Progress

# Vocabularies of 150 000 tokens make headers of 5 to 8 MB, small ones some 100 KB.
_FIRST_BYTES = 1 << 20
# Larger than any real header, so that a file which is none costs no more.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What was fetched of a model.

    Attributes:
        spec: What its header says; the licence is the source's where the header names none.
        files: The beginnings of its files, by the whole files' digests.
    """

    spec: ModelSpec
    files: dict[Digest, Path]


class UnknownSizeError(Exception):
    """A server does not tell how long a file is."""


def fetch_beginning(found: Found, folder: Path, *, progress: Progress) -> Beginning:
    """Fetch as much of a model as its header needs.

    Args:
        found: The model; it has files.
        folder: Takes the beginnings.
        progress: Told of the work.

    Raises:
        UnknownSizeError: A server does not tell how long a file is.
        ModelError: It is no usable GGUF file.
        ToolError: It cannot be fetched.
        RegistryError: The registry refused or failed.
    """
    names = [file.name for file in found.files]
    paths = [folder / name for name in names]
    with progress.task(f"header of {names[0]}"):
        try:
            have = [_fetch_header(file, path) for file, path in zip(found.files, paths, strict=True)]
            header = read_joined_header(paths)
        except ModelError as error:
            # It is no file of this machine.
            raise ModelError(error.message.replace(f"{folder}/", ""), hint=error.hint) from error
    for path, size in zip(paths, have, strict=True):
        os.truncate(path, size)
    spec = make_model_spec(header, file_name=whole_file_name(names[0]))
    return Beginning(
        spec=replace(spec, licence=spec.licence or found.licence()),
        files={file.digest: path for file, path in zip(found.files, paths, strict=True)},
    )


def _fetch_header(file: RemoteFile, path: Path) -> int:
    """Fetch until the header is whole, and make the file as long as the true one; returns the bytes that came."""
    upto = _FIRST_BYTES
    while True:
        size = file.extend(path, upto)
        if size is None:
            raise UnknownSizeError(f"the server does not tell how long {file.name} is")
        have = path.stat().st_size
        os.truncate(path, size)
        fault = _incompleteness(path, have)
        if fault is None or not _begins_as_gguf(path):
            return have
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

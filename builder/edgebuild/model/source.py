"""Where a model comes from: for now, a GGUF file of the user's or the demo model."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edgebuild.data import data_path
from edgebuild.errors import ModelError
from edgebuild.gguf import read_gguf_header
from edgebuild.model_spec import ModelSpec, make_model_spec
from edgebuild.oci.blob import CHUNK_BYTES
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import WHOLE_FILE, Seals
from edgebuild.progress import Progress

DEMO_MODEL = "demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model on this machine.

    Attributes:
        path: Absolute path of the GGUF file.
        spec: What its header says.
    """

    path: Path
    spec: ModelSpec


def load_model(reference: str, *, working_directory: Path) -> ModelFile:
    """Find a model and read its header.

    Args:
        reference: Path of a GGUF file, or "demo" for the model that ships with edgebuild.
        working_directory: What a relative path is relative to.

    Raises:
        ModelError: It is not there or is no usable GGUF file.
    """
    path = demo_model_path() if reference == DEMO_MODEL else working_directory / Path(reference).expanduser()
    if not path.exists():
        if "://" in reference:
            raise ModelError(
                f"{reference}: models are not fetched from the network yet",
                hint="download the GGUF file and give its path",
            )
        raise ModelError(
            f"{path}: no such model",
            hint="give the path of a .gguf file, or `demo` for the model that ships with edgebuild",
        )
    header = read_gguf_header(path)
    return ModelFile(path=path, spec=make_model_spec(header, file_name=path.name))


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

"""Quantising: a 16-bit GGUF file made smaller by llama.cpp's own library, once, and kept in the store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.errors import ModelError, ToolError
from edgebuild.gguf import read_gguf_header
from edgebuild.gguf_shards import shard_names
from edgebuild.gguf_types import FILE_TYPES
from edgebuild.host import Host
from edgebuild.model.importance import ImportanceMatrix, matrix_file
from edgebuild.model.library import LIBRARY_PYTHON, library_environment
from edgebuild.model.source import ModelFile, model_digest
from edgebuild.model_spec import make_model_spec, quantized_file_name
from edgebuild.oci.digest import Digest
from edgebuild.process import run
from edgebuild.progress import Progress

_FILE_TYPE_NUMBERS = {name: number for number, name in FILE_TYPES.items()}


def quantize(
    model: ModelFile,
    quantization: str,
    *,
    library: Callable[[], Path],
    library_source: Digest,
    store: Store,
    host: Host,
    progress: Progress,
    matrix: ImportanceMatrix | None = None,
) -> ModelFile:
    """Return the model in another type, from the store when it was made before.

    Args:
        model: The 16-bit model.
        quantization: llama.cpp's name of the type, e.g. "Q4_K_M".
        library: Gives the folder that holds the package `llama_cpp` for this machine; called only when there is work.
        library_source: sha256 of the source that it is built from.
        store: Keeps the result.
        host: This machine.
        progress: Told how far it is.
        matrix: Importance of the columns, or None.

    Raises:
        ModelError: The library refuses the model or the type, or the model changed meanwhile.
        ToolError: It crashed, or the disk is full.
    """
    name = quantized_file_name(model.spec.file_name, quantization)
    digest = model_digest(model, seals=store, progress=progress)
    recipe = {
        "format": 1,
        "source": str(digest),
        "type": quantization,
        "library": str(library_source),
        "name": name,
    }
    if matrix is not None:
        recipe["matrix"] = str(matrix.digest)
    key = Digest.of(canonical_json(recipe))

    def build(folder: Path) -> None:
        package = library()
        with (
            progress.task(f"quantise {model.spec.name} to {quantization}") as task,
            _named_for_library(model, store) as first,
            nullcontext() if matrix is None else matrix_file(matrix, store) as given,
        ):
            _run_library(
                first,
                folder / name,
                quantization,
                matrix=given,
                library=package,
                host=host,
                on_line=task.status,
            )
        # Within the build: what was made of other bytes than the key names must not become an entry.
        if model_digest(model, seals=store, progress=progress) != digest:
            raise ModelError(
                f"{model.path} changed while it was quantised",
                hint="run the build again once nothing writes there",
            )

    path = store.make("model", key, build) / name
    spec = make_model_spec(read_gguf_header(path), file_name=name)
    return ModelFile(path=path, spec=replace(spec, licence=model.spec.licence), source=model.source)


@contextmanager
def _named_for_library(model: ModelFile, store: Store) -> Iterator[Path]:
    """Give the path to name to llama.cpp: it finds the other files of a model beside the first, under names of its own.

    It joins them: the result is the same as that of the model in one file.
    """
    if not model.more:
        yield model.path
        return
    with store.workplace("quantize") as folder:
        names = shard_names(model.spec.file_name.removesuffix(".gguf"), len(model.files))
        for name, path in zip(names, model.files, strict=True):
            (folder / str(name)).symlink_to(path)
        yield folder / str(names[0])


def _run_library(
    source: Path,
    destination: Path,
    quantization: str,
    *,
    matrix: Path | None,
    library: Path,
    host: Host,
    on_line: Callable[[str], None],
) -> None:
    worker = Path(__file__).with_name("quantize_worker.py")
    argv: list[str | Path] = [
        *LIBRARY_PYTHON,
        worker,
        source,
        destination,
        str(_FILE_TYPE_NUMBERS[quantization]),
        str(host.cpu_count),
        *(() if matrix is None else (matrix,)),
    ]
    done = run(argv, environment=library_environment(host, library), on_line=on_line, check=False)
    if done.returncode == 0:
        return
    if done.returncode == 1:
        raise ModelError(
            f"{source.name} cannot be made {quantization}: {done.reason}",
            hint="try another --quantization, e.g. Q8_0",
        )
    raise ToolError(
        f"quantising {source.name} to {quantization} failed: {done.reason}",
        hint="check that disk and memory suffice, then try again",
    )

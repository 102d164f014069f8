"""Models on this machine: a GGUF file, a folder that holds one, or a folder that holds a Hugging Face checkpoint."""

from pathlib import Path

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError
from edgebuild.gguf_joined import find_shards, is_one_of_several
from edgebuild.host import Host
from edgebuild.model.fetched import Fetched
from edgebuild.model.selection import choose_files
from edgebuild.plan import ModelSource
from edgebuild.progress import Progress


def find_local_model(
    path: Path, *, wanted: tuple[str, ...], host: Host, store: Store, progress: Progress, may_set_up: bool
) -> Fetched:
    """Find the GGUF files that a path means: itself and those that belong to it, or a model in a folder; a checkpoint is converted.

    Args:
        path: A file, or a folder.
        wanted: Types that the devices want, each once.
        host: This machine.
        store: Keeps what is converted, and remembers what was hashed.
        progress: Told of the work.
        may_set_up: Whether what converting needs may be fetched.

    Raises:
        ModelError: There is no usable model.
        ToolError: The converter cannot be had, or failed.
        StoreError: The disk is full.
    """
    if not path.is_dir():
        if not path.exists():
            raise ModelError(
                f"{path}: no such model",
                hint="give the path of a .gguf file, hf://ORG/REPO, https://…#sha256=…, oci://REGISTRY/REPO, or `demo`",
            )
        # Only what is named as one of several has others beside it.
        beside = _list(path.parent) if is_one_of_several(path.name) else ()
        return _found(path.parent, find_shards(beside, path.name, place=str(path.parent)))
    files = _list(path)
    names = choose_files(files, wanted=wanted, place=str(path), hint=f"name the file: {path}/{{file}}")
    if names:
        return _found(path, names)
    from edgebuild.model.folder import convert_folder  # noqa: PLC0415 - GGUF files do without the converter

    return convert_folder(path, files, host=host, store=store, progress=progress, may_set_up=may_set_up)


def _found(folder: Path, names: tuple[str, ...]) -> Fetched:
    first, *more = names
    files = tuple((name, "") for name in names) if more else ()
    return Fetched(
        path=folder / first,
        source=ModelSource(kind="file", reference=first, file=first, files=files),
        more=tuple(folder / name for name in more),
    )


def _list(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(item.name for item in folder.iterdir() if item.is_file())
    except OSError as error:
        raise ModelError(
            f"{folder}: cannot be read: {error.strerror}", hint="check its permissions"
        ) from error

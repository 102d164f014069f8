"""Hugging Face checkpoints in a folder of this machine. Its files are hashed where they lie and never copied."""

import re
from collections.abc import Collection
from pathlib import Path

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError
from edgebuild.host import Host
from edgebuild.model.checkpoint import (
    CONFIG,
    INDEX,
    find_checkpoint,
    read_index,
    read_quantization,
    read_settings,
    verify_settings_size,
)
from edgebuild.model.converter import Checkpoint, convert
from edgebuild.model.fetched import Fetched
from edgebuild.model.hashing import file_digest
from edgebuild.model.safetensors import verify_weights
from edgebuild.plan import ModelSource
from edgebuild.progress import Progress


def convert_folder(
    path: Path,
    files: Collection[str],
    *,
    host: Host,
    store: Store,
    progress: Progress,
    may_set_up: bool,
) -> Fetched:
    """Convert the checkpoint in a folder, or find what was converted before.

    Args:
        path: The folder.
        files: Names of its files.
        host: This machine.
        store: Keeps the result, and remembers what was hashed.
        progress: Told of the work.
        may_set_up: Whether what converting needs may be fetched.

    Raises:
        ModelError: It is no usable checkpoint, or changed meanwhile.
        ToolError: The converter cannot be had, or failed.
        StoreError: The disk is full.
    """
    checkpoint = _read_checkpoint(path, files, store=store, progress=progress)
    return convert(checkpoint, host=host, store=store, progress=progress, may_set_up=may_set_up)


def _read_checkpoint(path: Path, files: Collection[str], *, store: Store, progress: Progress) -> Checkpoint:
    place = str(path)
    found = find_checkpoint(files, place=place)
    settings = {name: path / name for name in found.settings}
    for file in settings.values():
        verify_settings_size(file)
    quantization = read_quantization(read_settings(settings[CONFIG]), files, place=place)
    weights = found.weights
    if found.has_index:
        weights = read_index(read_settings(settings[INDEX]), files, place=place)
    shards = {name: path / name for name in weights}
    verify_weights(shards, place=place, quantization=quantization)
    digests = {
        name: file_digest(file, seals=store, progress=progress) for name, file in (settings | shards).items()
    }

    def verify() -> None:
        for name, digest in digests.items():
            if file_digest(path / name, seals=store, progress=progress) != digest:
                raise ModelError(
                    f"{path / name} changed while it was converted",
                    hint="run the build again once nothing writes there",
                )

    name = _folder_name(path)
    return Checkpoint(
        name=name,
        place=place,
        settings=settings,
        digests=digests,
        quantization=quantization,
        is_here=True,
        fetch=lambda: shards,
        verify=verify,
        source=ModelSource(kind="file", reference=name, file=INDEX if found.has_index else weights[0]),
    )


def _folder_name(path: Path) -> str:
    """Name a folder; that of a snapshot in a hub's cache is a commit, and the repository stands above it."""
    whole = path.resolve()
    repository = re.fullmatch(r"models--[^/]+?--(.+)", whole.parent.parent.name)
    return repository[1] if repository is not None and whole.parent.name == "snapshots" else whole.name

"""The rules between the layers of one image, and between the model layers of several; for `check`.

Why (measured with Docker 20.10): a daemon resets the mode of a directory that a layer does not hold itself or holds
otherwise, and an entry below a lower layer's symbolic link replaces the link.
"""

import re
import tarfile
from collections.abc import Iterator
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import NamedTuple

from edgebuild.oci.check_layer import Kind, LayerFacts, shown

ROLES = ("base", "accelerator", "model", "rootfs", "python-deps", "grpc", "engine", "server", "config")

_READ_BYTES = 1 << 20
# llama.cpp's name of one file of several (src/llama.cpp, llama_split_path).
_SHARD = re.compile(r"(?P<stem>.+)-[0-9]{5}-of-(?P<count>[0-9]{5})\.gguf")


class PlacedLayer(NamedTuple):
    """A layer at its place in an image: its number from the bottom, role, and what was found in it."""

    number: int
    role: str
    facts: LayerFacts


def faults_between(layers: tuple[PlacedLayer, ...]) -> Iterator[tuple[int, str]]:
    """Yield the number of a layer and what is wrong between it and others.

    Of a base image's layers only the symbolic links count: what else they do is not edgebuild's.
    """
    order = [(ROLES.index(layer.role), layer.number) for layer in layers if layer.role in ROLES]
    for (below, _), (above, number) in pairwise(order):
        if below > above:
            yield number, f"{ROLES[above]} lies above {ROLES[below]}"
    own = tuple(layer for layer in layers if layer.role != "base")
    yield from _repeats(own)
    yield from _hidden(layers, own)


def _repeats(own: tuple[PlacedLayer, ...]) -> Iterator[tuple[int, str]]:
    """Only directories are in several layers, and they are the same in all."""
    first: dict[str, PlacedLayer] = {}
    for layer in own:
        for name, member in layer.facts.members.items():
            other = first.setdefault(name, layer)
            before = other.facts.members[name]
            if other is layer:
                continue
            if member.kind is not Kind.DIRECTORY or before.kind is not Kind.DIRECTORY:
                yield layer.number, f"{shown(name)} is in layer {other.number} already"
            elif member != before:
                yield layer.number, f"directory {shown(name)} differs from the one in layer {other.number}"


def _hidden(layers: tuple[PlacedLayer, ...], own: tuple[PlacedLayer, ...]) -> Iterator[tuple[int, str]]:
    """No entry lies below a path that any layer makes a symbolic link or file."""
    blocked = {
        name: layer
        for layer in layers
        for name, member in layer.facts.members.items()
        if member.kind is Kind.LINK or (member.kind is not Kind.DIRECTORY and layer.role != "base")
    }
    for layer in own:
        for name in layer.facts.members:
            parts = name.split("/")
            parents = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
            above = next((parent for parent in parents if parent in blocked), None)
            if above is not None and blocked[above] is not layer:  # within a layer `check_layer` sees it
                yield (
                    layer.number,
                    f"{name} lies below {above}, no directory in layer {blocked[above].number}",
                )


def faults_of_model(layers: tuple[PlacedLayer, ...]) -> Iterator[tuple[int, str]]:
    """Yield the number of a layer and what is wrong with the model's files: one in a layer, and of several all, in order.

    Layers that were not read hold what they are trusted to hold.
    """
    found = tuple(layer for layer in layers if layer.role == "model")
    if not all(layer.facts.members for layer in found):
        return
    names = []
    for layer in found:
        files = [name for name, member in layer.facts.members.items() if member.kind is Kind.FILE]
        if len(files) != 1 or not re.fullmatch(r"models/[^/]+", files[0]):
            yield layer.number, "a model's layer holds something else than one file below models/"
            return
        names += files
    first = _SHARD.fullmatch(names[0]) if names else None
    if first is None or len(names) == int(first["count"]) == 1:
        wanted = names[:1]
    else:
        count = int(first["count"])
        numbers = range(1, min(count, len(names) + 1) + 1)
        wanted = [f"{first['stem']}-{number:05d}-of-{count:05d}.gguf" for number in numbers]
    for layer, name, due in zip_longest(found, names, wanted):
        if name != due:
            yield (layer or found[-1]).number, _misplaced(name, due)
            return


def _misplaced(name: str | None, due: str | None) -> str:
    if name is None:
        return f"{shown(str(due))} of the model is missing"
    if due is None:
        return f"{shown(name)} is no file of the model below"
    return f"{shown(name)} is where {shown(due)} of the model should be"


def model_files(layers: tuple[PlacedLayer, ...]) -> Iterator[tuple[str, int, str]]:
    """Yield path, size in bytes and layer digest of every file in a model layer."""
    for layer in layers:
        for name, member in layer.facts.members.items():
            if layer.role == "model" and member.kind is Kind.FILE:
                yield name, member.size_bytes, f"sha256:{layer.facts.digest}"


def same_file(one: Path, other: Path, name: str) -> bool:
    """Compare a file in two layers, by pieces."""
    with tarfile.open(one) as left, tarfile.open(other) as right:
        a, b = left.extractfile(name), right.extractfile(name)
        while a is not None and b is not None:
            piece = a.read(_READ_BYTES)
            if piece != b.read(_READ_BYTES):
                return False
            if not piece:
                return True
        return False

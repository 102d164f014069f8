"""Layers of artifacts: compressed once, kept in the store."""

import json
from pathlib import Path

from edgebuild.artifacts.recipes import Artifact
from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.oci.blob import Blob
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Layer, Role
from edgebuild.oci.tar import COMPRESSION, LAYER_EPOCH_S, tree_layer

# Raise it when the tar writer gives other bytes for the same tree.
_LAYER_FORMAT = 1
_BLOB = "layer.tar.gz"
_DESCRIPTION = "layer.json"


def has_layer(key: Digest, prefix: str, store: Store) -> bool:
    """Say whether the store has the layer of an artifact, given by its key; the tree itself may be gone."""
    return store.find("layer", _layer_key(key, prefix)) is not None


def find_layer(key: Digest, *, role: Role, prefix: str, store: Store) -> Layer | None:
    """Return the layer of an artifact if the store has it; the tree itself is neither needed nor looked at.

    Args:
        key: The artifact's key.
        role: What the layer holds.
        prefix: Where the tree lies in the image.
        store: Keeps layers.
    """
    entry = store.find("layer", _layer_key(key, prefix))
    return None if entry is None else _read_layer(entry, role)


def artifact_layer(artifact: Artifact, *, role: Role, prefix: str, store: Store) -> Layer:
    """Return an artifact as a compressed layer, made now if the store does not have it.

    Args:
        artifact: The tree.
        role: What the layer holds.
        prefix: Where the tree lies in the image, e.g. "opt/edge/deps"; "" is the root.
        store: Keeps the layer.

    Raises:
        StoreError: The disk is full.
        ImageError: The tree holds something that a layer cannot.
    """

    def build(folder: Path) -> None:
        layer = tree_layer(artifact.tree, role=role, prefix=prefix, destination=folder / _BLOB)
        document = {
            "media_type": layer.media_type,
            "digest": str(layer.digest),
            "diff_id": str(layer.diff_id),
            "artifact": artifact.name,
            "platform": str(artifact.platform),
        }
        (folder / _DESCRIPTION).write_bytes(canonical_json(document))

    return _read_layer(store.make("layer", _layer_key(artifact.key, prefix), build), role)


def _layer_key(key: Digest, prefix: str) -> Digest:
    return Digest.of(
        canonical_json(
            {
                "format": _LAYER_FORMAT,
                "artifact": str(key),
                "prefix": prefix,
                "compression": COMPRESSION,
                "epoch_s": LAYER_EPOCH_S,
            }
        )
    )


def _read_layer(entry: Path, role: Role) -> Layer:
    document = json.loads((entry / _DESCRIPTION).read_bytes())
    return Layer(
        role=role,
        media_type=document["media_type"],
        digest=Digest.parse(document["digest"]),
        diff_id=Digest.parse(document["diff_id"]),
        blob=Blob.of_file(entry / _BLOB),
    )

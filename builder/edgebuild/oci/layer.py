"""Layers: the steps from which an image's file system is laid, each with two identities."""

from dataclasses import dataclass
from enum import StrEnum

from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest


class Role(StrEnum):
    """What a layer holds, bottom first: what changes least lies lowest (docs/design.md, "Anatomy of an image")."""

    BASE = "base"
    ACCELERATOR = "accelerator"
    MODEL = "model"
    ROOTFS = "rootfs"
    PYTHON_DEPS = "python-deps"
    GRPC = "grpc"
    ENGINE = "engine"
    SERVER = "server"
    CONFIG = "config"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer.

    Attributes:
        role: What it holds.
        media_type: `LAYER_TAR` or `LAYER_GZIP`.
        digest: sha256 of the blob as it is stored and sent.
        diff_id: sha256 of the uncompressed tar (image-spec v1.1 config.md, rootfs.diff_ids).
        blob: The bytes.
    """

    role: Role
    media_type: str
    digest: Digest
    diff_id: Digest
    blob: Blob

    @property
    def size_bytes(self) -> int:
        """Bytes stored and sent."""
        return self.blob.size_bytes

    @property
    def descriptor(self) -> Descriptor:
        """How a manifest points at it."""
        return Descriptor(
            media_type=self.media_type,
            digest=self.digest,
            size_bytes=self.size_bytes,
            annotations={ROLE_ANNOTATION: self.role.value},
        )


ROLE_ANNOTATION = "dev.edgebuild.layer.role"

"""Indexes: several images under one name, one entry a profile."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgebuild.canonical import canonical_json
from edgebuild.oci import descriptor as media
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """An index and its images.

    Attributes:
        images: In the order of the entries; within a platform the first is the one that a plain pull takes.
        raw: Raw bytes; their digest is the index's identity.
    """

    images: tuple[Image, ...]
    raw: bytes

    @property
    def digest(self) -> Digest:
        """Digest of the raw bytes."""
        return Digest.of(self.raw)

    @property
    def descriptor(self) -> Descriptor:
        """How a layout's index.json points at it."""
        return Descriptor(media_type=media.INDEX, digest=self.digest, size_bytes=len(self.raw))


def make_index(images: tuple[Image, ...], *, annotations: Mapping[str, str]) -> Index:
    """Write the index of `images`, in the order given.

    Source: image-spec v1.1 image-index.md.
    """
    document = {
        "schemaVersion": 2,
        "mediaType": media.INDEX,
        "manifests": [image.descriptor.to_json() for image in images],
        "annotations": dict(annotations),
    }
    return Index(images=images, raw=canonical_json(document))

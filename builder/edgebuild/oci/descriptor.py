"""Descriptors: how OCI documents point at bytes, and the media types edgebuild writes and reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from edgebuild.oci.digest import Digest
from edgebuild.oci.platform import Platform

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"

REF_NAME = "org.opencontainers.image.ref.name"
PROFILE_ANNOTATION = "dev.edgebuild.profile"

NO_ANNOTATIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A pointer to bytes.

    Attributes:
        media_type: What the bytes are.
        digest: Their sha256.
        size_bytes: Their number.
        annotations: Keys and values; empty when the object has none.
        platform: For a manifest inside an index.
        artifact_type: For a manifest that is no image.

    Source: image-spec v1.1 descriptor.md.
    """

    media_type: str
    digest: Digest
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=lambda: NO_ANNOTATIONS)
    platform: Platform | None = None
    artifact_type: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give the JSON object, keys in the specification's order, empty ones left out."""
        document: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size_bytes,
        }
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.platform is not None:
            document["platform"] = self.platform.to_json()
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        return document

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Read a descriptor that somebody else wrote; unknown keys are let be, as the specification asks.

        Raises:
            ValueError: A required key is missing or of the wrong type.
        """
        if not isinstance(document, dict):
            raise ValueError("a descriptor is not an object")
        media_type, digest, size = (document.get(key) for key in ("mediaType", "digest", "size"))
        if not isinstance(media_type, str) or not isinstance(digest, str):
            raise ValueError("a descriptor lacks mediaType or digest")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"descriptor {digest!r} has no size")
        return cls(
            media_type=media_type,
            digest=Digest.parse(digest),
            size_bytes=size,
            annotations=_annotations(document.get("annotations")),
            platform=_platform(document.get("platform")),
            artifact_type=str(document.get("artifactType") or ""),
        )


def _annotations(value: object) -> Mapping[str, str]:
    if value is None:
        return NO_ANNOTATIONS
    if not isinstance(value, dict) or not all(
        isinstance(item, str) for pair in value.items() for item in pair
    ):
        raise ValueError("annotations are not strings by name")
    return MappingProxyType(dict(value))


def _platform(value: object) -> Platform | None:
    if not isinstance(value, dict) or not isinstance(value.get("architecture"), str):
        return None
    return Platform(
        os=str(value.get("os", "")),
        architecture=value["architecture"],
        variant=str(value.get("variant") or ""),
    )

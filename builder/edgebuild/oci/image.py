"""Images of one platform: config and manifest, made once and known by their bytes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from edgebuild.canonical import canonical_json
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Layer
from edgebuild.oci.platform import Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a container of the image starts.

    Attributes:
        user: "uid:gid".
        environment: Name and value pairs, in the order written.
        entrypoint: Program and fixed arguments.
        command: Default arguments.
        working_directory: Absolute path in the image.
        exposed_ports: TCP ports that the server listens on.
        health_command: Program and arguments of the health check.
        health_interval_s: Seconds between two checks.
        health_start_period_s: Seconds in which a failing check does not count.
        labels: Labels of the image.
    """

    user: str
    environment: tuple[tuple[str, str], ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    working_directory: str
    exposed_ports: tuple[int, ...]
    health_command: tuple[str, ...]
    health_interval_s: int
    health_start_period_s: int
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of one platform.

    Attributes:
        profile: Name of the profile it was made for.
        platform: What it runs on.
        layers: Bottom first.
        config: Raw bytes of the image config.
        manifest: Raw bytes of the manifest; their digest is the image's identity.
    """

    profile: str
    platform: Platform
    layers: tuple[Layer, ...]
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> Digest:
        """Digest of the manifest."""
        return Digest.of(self.manifest)

    @property
    def config_digest(self) -> Digest:
        """Digest of the config: the image's ID in a classic Docker daemon."""
        return Digest.of(self.config)

    @property
    def descriptor(self) -> Descriptor:
        """How an index points at it."""
        return Descriptor(
            media_type=media.MANIFEST,
            digest=self.digest,
            size_bytes=len(self.manifest),
            annotations={media.PROFILE_ANNOTATION: self.profile},
            platform=self.platform,
        )

    def labels(self) -> Mapping[str, str]:
        """Read the labels of the config; empty when it has none."""
        labels = json.loads(self.config).get("config", {}).get("Labels") or {}
        return {str(name): str(value) for name, value in labels.items()}

    def blobs(self) -> Mapping[Digest, Blob]:
        """Everything the manifest points at, by digest."""
        return {layer.digest: layer.blob for layer in self.layers} | {
            self.config_digest: Blob.of_bytes(self.config)
        }


def make_image(
    *,
    profile: str,
    platform: Platform,
    layers: tuple[Layer, ...],
    run: RunConfig,
    annotations: Mapping[str, str],
    epoch_s: int,
) -> Image:
    """Write config and manifest of an image.

    Args:
        profile: Name of the profile.
        platform: What it runs on.
        layers: Bottom first.
        run: How a container starts.
        annotations: Annotations of the manifest.
        epoch_s: Seconds since 1970 written as the time of creation.

    Source: image-spec v1.1 config.md and manifest.md; HEALTHCHECK as Docker's config writes it (nanoseconds).
    """
    config = canonical_json(_config(platform=platform, layers=layers, run=run, epoch_s=epoch_s))
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media.MANIFEST,
        "config": Descriptor(
            media_type=media.CONFIG, digest=Digest.of(config), size_bytes=len(config)
        ).to_json(),
        "layers": [layer.descriptor.to_json() for layer in layers],
        "annotations": dict(annotations),
    }
    return Image(
        profile=profile, platform=platform, layers=layers, config=config, manifest=canonical_json(manifest)
    )


def _config(*, platform: Platform, layers: tuple[Layer, ...], run: RunConfig, epoch_s: int) -> dict[str, Any]:
    created = rfc3339(epoch_s)
    return {
        "created": created,
        **platform.to_json(),
        "config": {
            "User": run.user,
            "ExposedPorts": {f"{port}/tcp": {} for port in run.exposed_ports},
            "Env": [f"{name}={value}" for name, value in run.environment],
            "Entrypoint": list(run.entrypoint),
            "Cmd": list(run.command),
            "WorkingDir": run.working_directory,
            "Labels": dict(run.labels),
            "Healthcheck": {
                "Test": ["CMD", *run.health_command],
                "Interval": run.health_interval_s * 10**9,
                "Timeout": 10 * 10**9,
                "StartPeriod": run.health_start_period_s * 10**9,
                "Retries": 3,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
        "history": [{"created": created, "created_by": f"edgebuild: {layer.role}"} for layer in layers],
    }


def rfc3339(epoch_s: int) -> str:
    """Write seconds since 1970 as OCI documents want them, e.g. "2024-01-01T00:00:00Z"."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Layouts that keep every rule, written with nothing of edgebuild, for tests that break one rule at a time."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EPOCH_S = 1577836800
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
GZIP = TAR + "+gzip"
REF_NAME = "org.opencontainers.image.ref.name"

Json = dict[str, Any]
Member = tuple[tarfile.TarInfo, bytes]


def leave(_: Any) -> None:
    """Change nothing."""


def member(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, **changes: Any) -> Member:
    """Make a member that keeps the rules, `changes` to its attributes excepted."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mtime = EPOCH_S
    info.size = len(data)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o777 if kind == tarfile.SYMTYPE else 0o644
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **changes: Any) -> Member:
    return member(name, kind=tarfile.DIRTYPE, **changes)


def link(name: str, target: str, **changes: Any) -> Member:
    return member(name, kind=tarfile.SYMTYPE, linkname=target, **changes)


def archive(members: Iterable[Member], *, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format, encoding="utf-8") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@dataclass(slots=True)
class DraftLayer:
    """A layer; `blob` wins over what would be made of `tar`."""

    role: str
    members: list[Member]
    compressed: bool = True
    tar: bytes = b""
    blob: bytes = b""
    tar_format: int = tarfile.PAX_FORMAT
    change: Callable[[Json], object] = leave

    def write(self, blobs: Path) -> tuple[Json, str]:
        tar = self.tar or archive(self.members, tar_format=self.tar_format)
        blob = self.blob or (gzip.compress(tar, 6, mtime=0) if self.compressed else tar)
        entry = put(blobs, blob, GZIP if self.compressed else TAR, {"dev.edgebuild.layer.role": self.role})
        self.change(entry)
        return entry, f"sha256:{hashlib.sha256(tar).hexdigest()}"


@dataclass(slots=True)
class DraftImage:
    """An image; the hooks change its documents before they are hashed."""

    profile: str
    platform: Json
    layers: list[DraftLayer]
    labels: Json = field(default_factory=dict)
    change_config: Callable[[Json], object] = leave
    change_manifest: Callable[[Json], object] = leave
    change_entry: Callable[[Json], object] = leave

    def write(self, blobs: Path) -> Json:
        written = [layer.write(blobs) for layer in self.layers]
        config: Json = {
            **self.platform,
            "config": {"Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in written]},
            "history": [{"created_by": layer.role} for layer in self.layers],
        }
        self.change_config(config)
        manifest: Json = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": put_json(blobs, config, CONFIG),
            "layers": [entry for entry, _ in written],
        }
        self.change_manifest(manifest)
        entry = put_json(blobs, manifest, MANIFEST, {"dev.edgebuild.profile": self.profile})
        entry["platform"] = dict(self.platform)
        self.change_entry(entry)
        return entry


@dataclass(slots=True)
class Draft:
    """A layout of two images that share their model, tagged "1"."""

    images: list[DraftImage]
    signed: bool = False
    change_index: Callable[[Json], object] = leave
    change_index_json: Callable[[Json], object] = leave
    afterwards: Callable[[Path], object] = leave

    def layer(self, role: str, image: int = 0) -> DraftLayer:
        return next(layer for layer in self.images[image].layers if layer.role == role)

    def write(self, path: Path) -> Path:
        blobs = path / "blobs/sha256"
        blobs.mkdir(parents=True)
        entries = [image.write(blobs) for image in self.images]
        index: Json = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}
        self.change_index(index)
        top = put_json(blobs, index, INDEX, {REF_NAME: "1"})
        named = [
            {**entry, "annotations": {"dev.edgebuild.profile": image.profile, REF_NAME: f"1-{image.profile}"}}
            for entry, image in zip(entries, self.images, strict=True)
        ]
        signatures = write_signatures(blobs, top) if self.signed else []
        document: Json = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [top, *named, *signatures]}
        self.change_index_json(document)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (path / "index.json").write_text(json.dumps(document))
        self.afterwards(path)
        return path


def write_signatures(blobs: Path, subject: Json) -> list[Json]:
    """Write both forms of cosign's signatures: the `.sig` tag, and a referrer with its list under the fallback tag."""
    name = subject["digest"].replace(":", "-")
    legacy = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": put_json(blobs, {"rootfs": {}}, CONFIG),
        "layers": [put(blobs, b"payload", "application/vnd.dev.cosign.simplesigning.v1+json")],
    }
    bundle = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "config": put(blobs, b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [put(blobs, b"bundle", "application/vnd.dev.sigstore.bundle.v0.3+json")],
        "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
    }
    listed = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [put_json(blobs, bundle, MANIFEST)]}
    return [
        put_json(blobs, legacy, MANIFEST, {REF_NAME: f"{name}.sig"}),
        put_json(blobs, listed, INDEX, {REF_NAME: name}),
    ]


def put(blobs: Path, raw: bytes, media_type: str, annotations: Json | None = None) -> Json:
    digest = hashlib.sha256(raw).hexdigest()
    (blobs / digest).write_bytes(raw)
    entry: Json = {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(raw)}
    return entry | ({"annotations": annotations} if annotations else {})


def put_json(blobs: Path, document: Json, media_type: str, annotations: Json | None = None) -> Json:
    return put(blobs, json.dumps(document).encode(), media_type, annotations)


def make_draft() -> Draft:
    """Make a layout that keeps every rule."""
    return Draft([_image("pi4", "arm64", "v8"), _image("x86", "amd64", "")])


def _image(profile: str, architecture: str, variant: str) -> DraftImage:
    platform = {"architecture": architecture, "os": "linux"} | ({"variant": variant} if variant else {})
    model = DraftLayer("model", [folder("models"), member("models/m.gguf", b"GGUF" * 500)], compressed=False)
    rootfs = DraftLayer(
        "rootfs",
        [
            folder("etc"),
            member("etc/passwd", b"edge"),
            link("lib", "usr/lib"),
            folder("root", mode=0o700),
            folder("tmp", mode=0o1777),
            folder("usr"),
            folder("usr/bin"),
            member("usr/bin/python3.13", b"ELF", mode=0o755),
            folder("usr/lib"),
            member("usr/lib/" + "l" * 120, b"long"),
            member("usr/lib/ü", b"beyond ASCII"),
        ],
    )
    config = DraftLayer(
        "config",
        [folder("etc"), folder("etc/edgebuild"), member("etc/edgebuild/runtime.json", profile.encode())],
    )
    return DraftImage(profile, platform, [model, rootfs, config])

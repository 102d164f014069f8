"""A small layout as a build leaves it: two profiles that share their model, an index, both forms of signatures."""

import json
import random
from pathlib import Path

from edgebuild.canonical import canonical_json
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.layout import LayoutSink, read_layout
from edgebuild.oci.layout_read import Layout
from edgebuild.oci.platform import LINUX_AMD64, LINUX_ARM64, Platform
from edgebuild.oci.referrers import signature_tag
from edgebuild.progress import SilentProgress

SIGNED_FOR = "registry.example.com/acme/llm:1.0"
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"


def write_signed_layout(
    folder: Path, *, model_bytes: int = 200_000, signed_for: str = SIGNED_FOR, signature: str = "c2ln"
) -> Layout:
    with LayoutSink(folder, progress=SilentProgress(), extend=folder.exists()) as sink:
        model = random.Random(7).randbytes(model_bytes)
        images = tuple(
            _image(sink, profile, platform, model)
            for profile, platform in (("pi4", LINUX_ARM64), ("x86", LINUX_AMD64))
        )
        raw = canonical_json(
            {"schemaVersion": 2, "mediaType": media.INDEX, "manifests": [i.to_json() for i in images]}
        )
        index = Descriptor(media_type=media.INDEX, digest=Digest.of(raw), size_bytes=len(raw))
        sink.put_manifest(raw, index)
        for subject in (*images, index):
            _sign(sink, subject, signed_for, signature)
        for image, profile in zip(images, ("pi4", "x86"), strict=True):
            sink.tag(image, f"1.0-{profile}")
        sink.tag(index, "1.0")
    return read_layout(folder)


def _put(sink: LayoutSink, data: bytes, media_type: str, **more: str) -> Descriptor:
    digest = sink.put_blob(Blob.of_bytes(data), digest=None, title="blob")
    return Descriptor(media_type=media_type, digest=digest, size_bytes=len(data), annotations=more)


def _image(sink: LayoutSink, profile: str, platform: Platform, model: bytes) -> Descriptor:
    layers = [
        _put(sink, model, media.LAYER_TAR),
        _put(sink, f"software of {profile}".encode(), media.LAYER_TAR),
    ]
    config = _put(
        sink,
        json.dumps(
            {
                "architecture": platform.architecture,
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
            }
        ).encode(),
        media.CONFIG,
    )
    raw = _manifest(config, layers)
    descriptor = Descriptor(
        media_type=media.MANIFEST,
        digest=Digest.of(raw),
        size_bytes=len(raw),
        annotations={media.PROFILE_ANNOTATION: profile},
        platform=platform,
    )
    sink.put_manifest(raw, descriptor)
    return descriptor


def _manifest(config: Descriptor, layers: list[Descriptor], **more: object) -> bytes:
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            **({"artifactType": more.pop("artifactType")} if "artifactType" in more else {}),
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
            **more,
        }
    )


def _sign(sink: LayoutSink, subject: Descriptor, reference: str, signature: str) -> None:
    payload = {
        "critical": {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": str(subject.digest)},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    layer = _put(
        sink,
        canonical_json(payload),
        SIMPLE_SIGNING,
        **{"dev.cosignproject.cosign/signature": signature},
    )
    raw = _manifest(_put(sink, b'{"rootfs":{}}', media.CONFIG), [layer])
    legacy = Descriptor(media_type=media.MANIFEST, digest=Digest.of(raw), size_bytes=len(raw))
    sink.put_manifest(raw, legacy)
    sink.tag(legacy, signature_tag(subject.digest))
    kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
    bundle = _put(sink, f"bundle of {subject.digest}".encode(), kind)
    bare = Descriptor(media_type=subject.media_type, digest=subject.digest, size_bytes=subject.size_bytes)
    raw = _manifest(_put(sink, b"{}", media.EMPTY), [bundle], artifactType=kind, subject=bare.to_json())
    referrer = Descriptor(
        media_type=media.MANIFEST, digest=Digest.of(raw), size_bytes=len(raw), artifact_type=kind
    )
    sink.put_referrer(raw, referrer, subject.digest)

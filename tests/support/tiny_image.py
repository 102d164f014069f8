"""The smallest image that runs: one static program, for one or more platforms, as an OCI layout.

Written here with nothing of edgebuild, so that a peer's test does not stand on what it is meant to check.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyImage:
    """An image in a layout.

    Attributes:
        layout: Folder of the OCI layout, whose `index.json` names one image index.
        digest: Of that index, "sha256:…".
        manifests: Digest of each platform's manifest, by "architecture".
    """

    layout: Path
    digest: str
    manifests: Mapping[str, str]


def write_tiny_image(folder: Path, *, programs: Mapping[str, Path], text: str = "tiny") -> TinyImage:
    """Write an image that holds busybox as /bin/busybox and /bin/sh, and `text` as /text.

    Args:
        programs: Static busybox by OCI architecture, such as "amd64".
        text: Content of /text; another text makes another image.
    """
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    entries = []
    for architecture, program in programs.items():
        tar = _layer(program, text)
        layer = _put(blobs, gzip.compress(tar, 1, mtime=0), LAYER)
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/sh", "-c", "/bin/busybox cat /text"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _put(blobs, json.dumps(config).encode(), CONFIG),
            "layers": [layer],
        }
        entry = _put(blobs, json.dumps(manifest).encode(), MANIFEST)
        entries.append({**entry, "platform": {"architecture": architecture, "os": "linux"}})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    top = _put(blobs, json.dumps(index).encode(), INDEX)
    named = {**top, "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (folder / "index.json").write_text(json.dumps({**index, "manifests": [named]}), "utf-8")
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', "utf-8")
    manifests = {entry["platform"]["architecture"]: entry["digest"] for entry in entries}
    return TinyImage(layout=folder, digest=top["digest"], manifests=manifests)


def _layer(program: Path, text: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("bin", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(directory)
        for name, content, mode in (
            ("bin/busybox", program.read_bytes(), 0o755),
            ("text", text.encode(), 0o644),
        ):
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(content), mode
            tar.addfile(file, io.BytesIO(content))
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)
    return buffer.getvalue()


def _put(blobs: Path, content: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

"""A repository in memory: what signing writes to and verifying reads from, with nothing in between that could forgive.

A test changes it directly (`manifests`, `tags`, `blobs`) to play the registry's owner or an attacker.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import INDEX, MANIFEST, PROFILE_ANNOTATION, Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.platform import LINUX_AMD64, LINUX_ARM64
from edgebuild.oci.referrers import put_fallback
from edgeverify.errors import VerificationError
from edgeverify.image import Referrer


@dataclass
class MemoryRepository:
    """A `SignatureSink` and a `TreeSource`.

    Attributes:
        has_referrers_api: Whether it lists referrers itself, as a registry of distribution-spec v1.1 does.
        blobs: Bytes by digest.
        manifests: Bytes by digest.
        tags: Digest by name.
        reads: Every digest and tag that was read, in order.
    """

    has_referrers_api: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)

    def put_blob(self, blob: Blob, *, digest: Digest | None, title: str) -> Digest:
        assert title
        data = blob.read()
        assert digest in {None, Digest.of(data)}
        self.blobs[str(Digest.of(data))] = data
        return Digest.of(data)

    def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        assert (Digest.of(raw), len(raw)) == (descriptor.digest, descriptor.size_bytes)
        for part in parts(json.loads(raw)):
            assert part["digest"] in {*self.blobs, *self.manifests}, "a manifest before what it points at"
        self.manifests[str(descriptor.digest)] = raw

    def tag(self, descriptor: Descriptor, name: str) -> None:
        assert str(descriptor.digest) in self.manifests
        self.tags[name] = str(descriptor.digest)

    def stop(self) -> None:
        """Nothing to end: nobody puts anything from another thread."""

    def get_manifest(self, reference: str) -> bytes | None:
        self.reads.append(reference)
        digest = reference if reference.startswith("sha256:") else self.tags.get(reference, "")
        return self.manifests.get(digest)

    def put_referrer(self, raw: bytes, descriptor: Descriptor, subject: Digest) -> None:
        self.put_manifest(raw, descriptor)
        if not self.has_referrers_api:
            put_fallback(self, descriptor, subject)

    def manifest(self, reference: str) -> bytes | None:
        return self.get_manifest(reference)

    def referrers(self, digest: str) -> tuple[Referrer, ...]:
        if not self.has_referrers_api:
            return ()
        return tuple(
            Referrer(digest=key, artifact_type=document.get("artifactType", ""))
            for key, raw in self.manifests.items()
            if (document := json.loads(raw)).get("subject", {}).get("digest") == digest
        )

    def blob(self, digest: str, *, max_bytes: int) -> bytes:
        self.reads.append(digest)
        if digest not in self.blobs:
            raise VerificationError(f"{digest} is not there")
        if len(self.blobs[digest]) > max_bytes:
            raise VerificationError(f"{digest} is too large")
        return self.blobs[digest]

    def chunks(self, digest: str) -> Iterator[bytes]:
        yield self.blob(digest, max_bytes=1 << 30)

    def add_blob(self, data: bytes) -> dict[str, Any]:
        """Keep bytes; give digest and size as a descriptor has them."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"digest": digest, "size": len(data)}

    def add_manifest(self, document: object, *tags: str) -> str:
        """Keep a manifest and give it tags; nothing is checked."""
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        self.manifests[digest] = raw
        self.tags.update(dict.fromkeys(tags, digest))
        return digest

    def add_image(self, text: str = "image") -> Digest:
        """Keep an index of two profiles, pi4 and x86, each with a config and one layer of their own."""
        entries = []
        for profile, platform in (("pi4", LINUX_ARM64), ("x86", LINUX_AMD64)):
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": "c"} | self.add_blob(f"{text} config {profile}".encode()),
                "layers": [{"mediaType": "l"} | self.add_blob(f"{text} layer {profile}".encode())],
            }
            digest = self.add_manifest(manifest)
            entries.append(
                {
                    "mediaType": MANIFEST,
                    "digest": digest,
                    "size": len(self.manifests[digest]),
                    "annotations": {PROFILE_ANNOTATION: profile},
                    "platform": platform.to_json(),
                }
            )
        return Digest.parse(self.add_manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}))


def parts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the descriptors that a manifest or index needs to be there; its subject need not be."""
    config = [document["config"]] if "config" in document else []
    return [*config, *document.get("layers", ()), *document.get("manifests", ())]

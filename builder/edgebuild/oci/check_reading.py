"""Blobs and documents of a layout, read for `check`: each once, with every fault noted at its place."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DOCUMENT_LIMIT_BYTES = 4 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken rule.

    Attributes:
        place: Where: a file of the layout, or the way from index.json to the part.
        message: What.
    """

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """A descriptor whose blob is there."""

    media_type: str
    digest: str
    annotations: Mapping[str, str]
    platform: Mapping[str, Any] | None
    artifact_type: str


@dataclass(slots=True)
class Reading:
    """A layout being read.

    Attributes:
        path: Its folder.
        faults: What was found wrong so far.
        documents: Parsed blobs by digest; None for those that are no JSON object.
        seen: File names of the blobs that something refers to.
        hashed: Digests of the opaque blobs that were compared.
    """

    path: Path
    faults: list[Fault] = field(default_factory=list)
    documents: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    hashed: set[str] = field(default_factory=set)

    def add(self, place: str, *messages: str) -> None:
        """Note faults."""
        self.faults.extend(Fault(place, message) for message in messages)

    def file(self, name: str) -> bytes | None:
        """Read a file beside the blobs."""
        path = self.path / name
        if not path.is_file():
            self.add(name, "is missing")
            return None
        with path.open("rb") as file:
            return file.read(_DOCUMENT_LIMIT_BYTES)

    def parse(self, place: str, raw: bytes | None) -> dict[str, Any] | None:
        """Parse a JSON object."""
        if raw is None:
            return None
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as error:
            self.add(place, f"is not JSON: {error}")
            return None
        if not isinstance(document, dict):
            self.add(place, "is not a JSON object")
            return None
        return document

    def items(self, place: str, document: Mapping[str, Any], key: str) -> tuple[object, ...]:
        """Return the list under a key, empty when it is none."""
        found = document.get(key)
        if not isinstance(found, list):
            self.add(place, f"has no list {key!r}")
            return ()
        return tuple(found)

    def follow(self, place: str, document: object, media_types: tuple[str, ...] = ()) -> Pointer | None:
        """Check a descriptor and the size of its blob; None when there is nothing to follow."""
        if not isinstance(document, dict) or not is_digest(document.get("digest")):
            self.add(place, "is no descriptor with a sha256 digest")
            return None
        digest, media_type = document["digest"], str(document.get("mediaType"))
        blob = self.blob(digest)
        if not blob.is_file():
            self.add(place, f"blob {digest} is missing")
            return None
        self.seen.add(blob.name)
        if blob.stat().st_size != document.get("size"):
            self.add(place, f"blob {digest} has {blob.stat().st_size} bytes, not {document.get('size')}")
        if media_types and media_type not in media_types:  # 3
            self.add(place, f"mediaType {media_type!r} is not {' or '.join(media_types)}")
            return None
        annotations = document.get("annotations", {})
        if not isinstance(annotations, dict) or not all(isinstance(v, str) for v in annotations.values()):
            self.add(place, "annotations are not strings by name")
            annotations = {}
        platform = document.get("platform")
        return Pointer(
            media_type=media_type,
            digest=digest,
            annotations=annotations,
            platform=platform if isinstance(platform, dict) else None,
            artifact_type=str(document.get("artifactType") or ""),
        )

    def blob(self, digest: str) -> Path:
        """Return where a blob lies."""
        return self.path / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def document(self, place: str, digest: str) -> dict[str, Any] | None:
        """Read a JSON blob once, and check its digest."""
        if digest not in self.documents:
            blob = self.blob(digest)
            if blob.stat().st_size > _DOCUMENT_LIMIT_BYTES:
                self.add(place, f"blob {digest} is too large for a document")
                self.documents[digest] = None
                return None
            raw = blob.read_bytes()
            self.compare(place, digest, hashlib.sha256(raw).hexdigest())
            self.documents[digest] = self.parse(place, raw)
        return self.documents[digest]

    def compare(self, place: str, digest: str, found: str) -> None:
        """Compare a digest with what was found, in hexadecimal."""
        if digest != f"sha256:{found}":
            self.add(place, f"blob {digest} has the digest sha256:{found}")

    def check_head(self, place: str, document: Mapping[str, Any], media_type: str) -> None:
        """Check what a manifest or index says of itself."""
        if document.get("schemaVersion") != 2:
            self.add(place, "schemaVersion is not 2")
        if document.get("mediaType") != media_type:
            self.add(place, f"mediaType inside is {document.get('mediaType')!r}, not {media_type}")

    def compare_opaque(self, place: str, digest: str) -> None:
        """Check the digest of a blob that is not looked into, once."""
        if digest in self.hashed:
            return
        self.hashed.add(digest)
        with self.blob(digest).open("rb") as file:
            self.compare(place, digest, hashlib.file_digest(file, "sha256").hexdigest())


def is_digest(value: object) -> bool:
    """Tell a sha256 digest from anything else."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None

"""What the registry holds: blobs on disk, manifests and tags in memory."""

import hashlib
import json
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class RefusedError(Exception):
    """A request that the specification refuses, with status and error code."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status = status
        self.code = code


@dataclass(slots=True)
class Upload:
    """A blob on its way."""

    repository: str
    path: Path
    size_bytes: int = 0
    is_dead: bool = False


class Store:
    """The registry's content."""

    def __init__(self, root: Path) -> None:
        self._root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        (root / "uploads").mkdir(exist_ok=True)
        self._lock = threading.RLock()
        self._links: set[tuple[str, str]] = set()
        self._manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._uploads: dict[str, Upload] = {}

    def blob(self, repository: str, digest: str) -> Path:
        """Return the file of a blob that the repository has."""
        with self._lock:
            if (repository, digest) not in self._links:
                raise RefusedError(404, "BLOB_UNKNOWN", digest)
        return self._root / "blobs" / digest.partition(":")[2]

    def add_blob(self, repository: str, content: bytes, *, digest: str = "") -> str:
        """Put a blob in, under its own digest or a false one."""
        digest = digest or f"sha256:{hashlib.sha256(content).hexdigest()}"
        (self._root / "blobs" / digest.partition(":")[2]).write_bytes(content)
        with self._lock:
            self._links.add((repository, digest))
        return digest

    def mount(self, repository: str, source: str, digest: str) -> bool:
        """Give the repository a blob of another one, if that has it."""
        with self._lock:
            if (source, digest) not in self._links:
                return False
            self._links.add((repository, digest))
            return True

    def start_upload(self, repository: str) -> str:
        """Open an upload; return its id."""
        identity = secrets.token_hex(8)
        path = self._root / "uploads" / identity
        path.touch()
        with self._lock:
            self._uploads[identity] = Upload(repository, path)
        return identity

    def upload(self, repository: str, identity: str) -> Upload:
        """Return an open upload."""
        with self._lock:
            upload = self._uploads.get(identity)
        if upload is None or upload.repository != repository or upload.is_dead:
            raise RefusedError(404, "BLOB_UPLOAD_INVALID", "no such upload")
        return upload

    def append(self, upload: Upload, body: Iterable[bytes]) -> None:
        """Append to an upload; when the body breaks off the upload is dead, as in distribution 2.8."""
        with upload.path.open("ab") as file:
            try:
                for chunk in body:
                    file.write(chunk)
                    upload.size_bytes += len(chunk)
            except BaseException:
                upload.is_dead = True
                raise

    def finish_upload(self, identity: str, digest: str) -> None:
        """Close an upload; its bytes must hash to the digest."""
        with self._lock:
            upload = self._uploads.pop(identity)
        with upload.path.open("rb") as file:
            actual = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if actual != digest:
            upload.path.unlink()
            raise RefusedError(400, "DIGEST_INVALID", f"{digest} was promised, {actual} came")
        upload.path.rename(self._root / "blobs" / digest.partition(":")[2])
        with self._lock:
            self._links.add((upload.repository, digest))

    def manifest(self, repository: str, reference: str) -> tuple[str, str, bytes]:
        """Return digest, media type and bytes of a manifest by tag or digest."""
        with self._lock:
            digest = reference if ":" in reference else self._tags.get((repository, reference), "")
            found = self._manifests.get((repository, digest))
        if found is None:
            raise RefusedError(404, "MANIFEST_UNKNOWN", reference)
        return digest, *found

    def add_manifest(
        self, repository: str, content: bytes, media_type: str, *, tag: str = "", digest: str = ""
    ) -> str:
        """Put a manifest in unchecked, under its own digest or a false one."""
        digest = digest or f"sha256:{hashlib.sha256(content).hexdigest()}"
        with self._lock:
            self._manifests[repository, digest] = (media_type, content)
            if tag:
                self._tags[repository, tag] = digest
        return digest

    def put_manifest(
        self, repository: str, reference: str, media_type: str, content: bytes
    ) -> tuple[str, str]:
        """Take a manifest whose parts are all there; return its digest and its subject's, or ""."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if ":" in reference and reference != digest:
            raise RefusedError(400, "DIGEST_INVALID", f"{reference} was promised, {digest} came")
        try:
            document: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise RefusedError(400, "MANIFEST_INVALID", str(error)) from error
        if document.get("mediaType", media_type) != media_type:
            raise RefusedError(400, "MANIFEST_INVALID", "mediaType is not the Content-Type")
        parts = [*document.get("layers", ()), *([document["config"]] if "config" in document else [])]
        with self._lock:
            missing = [part["digest"] for part in parts if (repository, part["digest"]) not in self._links]
            missing += [
                entry["digest"]
                for entry in document.get("manifests", ())
                if (repository, entry["digest"]) not in self._manifests
            ]
            if missing:
                raise RefusedError(400, "MANIFEST_BLOB_UNKNOWN", ", ".join(missing))
            tag = "" if ":" in reference else reference
            self.add_manifest(repository, content, media_type, tag=tag)
        return digest, (document.get("subject") or {}).get("digest", "")

    def tags(self, repository: str) -> list[str]:
        """List the repository's tags, sorted."""
        with self._lock:
            return sorted(tag for name, tag in self._tags if name == repository)

    def referrers(self, repository: str, subject: str) -> list[dict[str, Any]]:
        """Describe the manifests whose subject this is (distribution-spec 1.1, "Listing Referrers")."""
        with self._lock:
            candidates = [(key[1], *value) for key, value in self._manifests.items() if key[0] == repository]
        found = []
        for digest, media_type, content in candidates:
            document = json.loads(content)
            if (document.get("subject") or {}).get("digest") == subject:
                found.append(
                    {
                        "mediaType": media_type,
                        "digest": digest,
                        "size": len(content),
                        "artifactType": document.get("artifactType")
                        or document.get("config", {}).get("mediaType", ""),
                        "annotations": document.get("annotations", {}),
                    }
                )
        return found

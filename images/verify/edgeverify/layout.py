"""Images in an OCI image layout on disk: the device's offline check of a USB stick or a download.

A layout is a stranger's folder: links, pipes and devices in it are not followed, and no size is believed.

Source: image-spec v1.1 image-layout.md.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from edgeverify.bundle import BUNDLE_TYPES
from edgeverify.documents import check_digest, field, objects, parse_object
from edgeverify.errors import VerificationError, shown
from edgeverify.image import MANIFEST_BYTES, Referrer, read_manifest
from edgeverify.legacy import SIMPLE_SIGNING
from edgeverify.tree import Verified, verify_tree

REF_NAME = "org.opencontainers.image.ref.name"
ENTRIES = 1024  # of index.json
CHUNK_BYTES = 1 << 20
_SIGNATURE_TAG = re.compile(r"sha256-[0-9a-f]{64}(\.sig|\.att)?")
_ENVELOPE = (
    "application/vnd.dsse.envelope.v1+json"  # a layer of cosign's older attestations, sha256-<hex>.att
)


@dataclass(frozen=True, slots=True)
class LayoutSource:
    """A `TreeSource` over a layout.

    Attributes:
        path: The layout's folder.
        entries: The descriptors in index.json.
    """

    path: Path
    entries: tuple[dict[str, Any], ...]

    def manifest(self, reference: str) -> bytes | None:
        """Give what a digest or a ref.name names; None when it is not there.

        Raises:
            VerificationError: It is too large, no plain file, or two entries have that name.
        """
        if reference.startswith("sha256:"):
            path = self._blob_path(reference)
            return _read(path, max_bytes=MANIFEST_BYTES) if path.is_symlink() or path.exists() else None
        named = {str(entry.get("digest")) for entry in self.entries if ref_name(entry) == reference}
        if not named:
            return None
        if len(named) > 1:
            raise VerificationError(f"index.json has {len(named)} entries of the name {shown(reference)}")
        return _read(self._blob_path(named.pop()), max_bytes=MANIFEST_BYTES)

    def referrers(self, digest: str) -> tuple[Referrer, ...]:
        """Give the entries of index.json whose manifest names `digest` as its subject, as oras writes them."""
        found = []
        for entry in self.entries:
            artifact_type = entry.get("artifactType")
            if artifact_type in BUNDLE_TYPES and field(self.peek(entry), "subject", "digest") == digest:
                found.append(Referrer(digest=str(entry.get("digest")), artifact_type=str(artifact_type)))
        return tuple(found)

    def blob(self, digest: str, *, max_bytes: int) -> bytes:
        """Give a small blob.

        Raises:
            VerificationError: It is not there, no plain file or too large.
        """
        return _read(self._blob_path(digest), max_bytes=max_bytes)

    def chunks(self, digest: str) -> Iterator[bytes]:
        """Give a blob piece by piece.

        Raises:
            VerificationError: It is not there or no plain file.
        """
        return _chunks(self._blob_path(digest))

    def peek(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Read an entry's manifest; an unreadable one is about nothing."""
        try:
            return read_manifest(self, str(entry.get("digest")))
        except VerificationError:
            return {}

    def _blob_path(self, digest: str) -> Path:
        return self.path / "blobs" / "sha256" / check_digest(digest, what="the digest")[7:]


def open_layout(path: Path) -> LayoutSource:
    """Open a layout.

    Raises:
        VerificationError: It is not one.
    """
    marker = parse_object(_read(path / "oci-layout", max_bytes=4096), what="oci-layout", max_bytes=4096)
    if marker.get("imageLayoutVersion") != "1.0.0":
        raise VerificationError(
            f"oci-layout names version {shown(marker.get('imageLayoutVersion'))}, not 1.0.0"
        )
    raw = _read(path / "index.json", max_bytes=MANIFEST_BYTES)
    entries = objects(parse_object(raw, what="index.json", max_bytes=MANIFEST_BYTES).get("manifests"))
    if len(entries) > ENTRIES:
        raise VerificationError(f"index.json has {len(entries)} entries, more than {ENTRIES}")
    return LayoutSource(path, entries)


def verify_layout(
    path: Path, key: ec.EllipticCurvePublicKey, *, hash_blobs: bool = True
) -> tuple[Verified, ...]:
    """Verify every image in a layout: index, platform manifests and all blobs.

    Args:
        path: The layout's folder.
        key: From `load_public_key`.
        hash_blobs: As `verify_tree` says.

    Returns:
        One for each image, in the order of index.json. Only these are verified; a layout that is changed afterwards is
        not, so a device imports by these digests.

    Raises:
        VerificationError: An image in it is not signed, or is damaged; or there is none.
    """
    source = open_layout(path)
    done: set[str] = set()
    verified = []
    for entry in source.entries:
        digest = check_digest(entry.get("digest"), what="an entry's digest in index.json")
        if digest in done or _is_signature(source, entry, digest):
            continue
        image = verify_tree(source, digest, key, hash_blobs=hash_blobs)
        done.update(signed for signed, _ in image.signatures)
        verified.append(image)
    if not verified:
        raise VerificationError(f"the layout {shown(str(path))} holds no image")
    return tuple(verified)


def ref_name(entry: dict[str, Any]) -> str:
    """Give the name of an entry in index.json, or ""."""
    name = field(entry, "annotations", REF_NAME)
    return name if isinstance(name, str) else ""


def _is_signature(source: LayoutSource, entry: dict[str, Any], digest: str) -> bool:
    """Tell signatures and attestations, which need none, from images, by what they hold.

    A name alone persuades nobody, else an image called sha256-….sig would pass unsigned.
    """
    document = read_manifest(source, digest)
    layers = objects(document.get("layers"))
    if layers:
        kinds = {str(layer.get("mediaType")) for layer in layers}
        return kinds in ({SIMPLE_SIGNING}, {_ENVELOPE}) or (
            document.get("artifactType") in BUNDLE_TYPES and kinds <= set(BUNDLE_TYPES)
        )
    return _SIGNATURE_TAG.fullmatch(ref_name(entry)) is not None and all(
        field(source.peek(listed), "subject", "digest") == f"sha256:{ref_name(entry)[7:71]}"
        for listed in objects(document.get("manifests"))
    )


def _read(path: Path, *, max_bytes: int) -> bytes:
    data = bytearray()
    for chunk in _chunks(path):
        data += chunk
        if len(data) > max_bytes:
            raise VerificationError(f"{_place(path)} has more than {max_bytes} bytes")
    return bytes(data)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer. It means nothing for a plain file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise VerificationError(f"{_place(path)} is not a plain file")
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise VerificationError(f"{_place(path)} cannot be read: {error.strerror}") from error


def _place(path: Path) -> str:
    return shown(os.fspath(path))

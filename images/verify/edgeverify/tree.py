"""Verifying a whole image: the index, each platform's manifest, and every byte they point at."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from edgeverify.documents import check_digest, objects
from edgeverify.errors import VerificationError, shown
from edgeverify.image import Signature, Source, read_manifest, verify_image

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = 256  # of one index
BLOBS = 1024  # of one manifest


class TreeSource(Source, Protocol):
    """A source that gives large blobs as well."""

    def chunks(self, digest: str) -> Iterator[bytes]:
        """Give a blob piece by piece.

        Raises:
            VerificationError: It is not there.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was verified.

    Attributes:
        digest: The index or manifest that was asked for.
        signatures: Digest of every signed document, with the signature that was found: the index first.
        blob_count: Different blobs hashed.
        blob_bytes: Their bytes.
    """

    digest: str
    signatures: tuple[tuple[str, Signature], ...]
    blob_count: int
    blob_bytes: int


def verify_tree(
    source: TreeSource, digest: str, key: ec.EllipticCurvePublicKey, *, hash_blobs: bool = True
) -> Verified:
    """Verify an image and all that belongs to it.

    Args:
        source: Where it lies.
        digest: "sha256:<hex>" of an index or of one platform's manifest.
        key: From `load_public_key`.
        hash_blobs: Whether configs and layers are read and hashed as well; False verifies signatures and manifests
            and leaves the blobs to whoever pulls them, since a container engine hashes what it pulls.

    Raises:
        VerificationError: A signature is missing or wrong, or bytes are missing or others.
    """
    # (1) The document itself: its bytes are those of the digest, and it is signed.
    document = read_manifest(source, digest)
    signatures = {digest: verify_image(source, digest, key)}
    manifests = [document]

    # (2) Each manifest of an index: the same. A signature on the index alone does not cover one that is pulled by its
    #     own digest, as podman and skopeo do.
    if _is_index(document, digest):
        manifests = []
        for entry in _descriptors(document.get("manifests"), MANIFESTS, f"the index {digest}"):
            child = check_digest(entry.get("digest"), what="an index entry's digest")
            if child in signatures:
                continue
            manifest = read_manifest(source, child)
            if _is_index(manifest, child):
                raise VerificationError(f"the index {digest} holds another index, {child}")
            signatures[child] = verify_image(source, child, key)
            manifests.append(manifest)

    # (3) Every config and layer: size and hash, each blob once.
    sizes: dict[str, int] = {}
    for manifest in manifests if hash_blobs else ():
        parts = _descriptors([manifest.get("config")], 1, "a manifest")
        parts += _descriptors(manifest.get("layers"), BLOBS, "a manifest")
        for part in parts:
            blob = check_digest(part.get("digest"), what="a layer's digest")
            size = part.get("size")
            if sizes.get(blob) != size or blob not in sizes:
                sizes[blob] = verify_blob(source, blob, size)
    return Verified(
        digest=digest,
        signatures=tuple(signatures.items()),
        blob_count=len(sizes),
        blob_bytes=sum(sizes.values()),
    )


def verify_blob(source: TreeSource, digest: str, size: object) -> int:
    """Hash one blob as it streams.

    Args:
        source: Where it lies.
        digest: "sha256:<hex>".
        size: Bytes that its descriptor claims; reading stops beyond them.

    Returns:
        Its size in bytes.

    Raises:
        VerificationError: It is not there, or other bytes than the descriptor says.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise VerificationError(f"the blob {digest} has the size {shown(size)}")
    hasher = hashlib.sha256()
    read_bytes = 0
    for chunk in source.chunks(digest):
        hasher.update(chunk)
        read_bytes += len(chunk)
        if read_bytes > size:
            raise VerificationError(
                f"the blob {digest} has more than the {size} bytes that its descriptor says"
            )
    if read_bytes != size:
        raise VerificationError(f"the blob {digest} has {read_bytes} bytes, its descriptor says {size}")
    found = f"sha256:{hasher.hexdigest()}"
    if found != digest:
        raise VerificationError(f"the blob {digest} has the bytes of {found}")
    return read_bytes


def _is_index(document: dict[str, Any], digest: str) -> bool:
    """Tell an index from a manifest; its media type may be left out (image-spec v1.1 image-index.md).

    Raises:
        VerificationError: It could be taken for either, or is neither (GHSA-77vh-xpmg-72qh: image-spec's "clarify
            mediaType handling").
    """
    is_index = "manifests" in document
    is_manifest = "layers" in document or "config" in document
    claimed = document.get("mediaType")
    if is_index == is_manifest or (claimed is not None and (claimed in INDEX_TYPES) != is_index):
        raise VerificationError(f"{digest} is neither clearly an index nor clearly a manifest")
    return is_index


def _descriptors(value: object, limit: int, where: str) -> tuple[dict[str, Any], ...]:
    found = objects(value)
    if not isinstance(value, list) or len(found) != len(value) or len(found) > limit:
        raise VerificationError(f"{where} lists something else than up to {limit} descriptors")
    return found

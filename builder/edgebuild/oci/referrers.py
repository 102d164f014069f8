"""Referrers: how a manifest that names a subject is found again, with and without a registry's help.

A registry that knows the referrers API lists them itself. Elsewhere, and in layouts, they stand in an index under the
tag `sha256-<hex>` of the subject (distribution-spec v1.1, "Referrers Tag Schema"); cosign's older form has its own tag.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from edgebuild.canonical import canonical_json
from edgebuild.errors import ImageError
from edgebuild.oci import descriptor as media
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.sink import Sink


class SignatureSink(Sink, Protocol):
    """A sink that can also be asked what it holds, so that signatures are added beside others."""

    def get_manifest(self, reference: str) -> bytes | None:
        """Read a manifest or index of at most 4 MiB; None when it is not there.

        Args:
            reference: A tag, or "sha256:<hex>"; the bytes of a digest have been hashed.
        """
        ...

    def put_referrer(self, raw: bytes, descriptor: Descriptor, subject: Digest) -> None:
        """Store a manifest whose blobs are all there and make it findable from `subject`.

        Args:
            raw: The manifest; its `subject` names `subject`.
            descriptor: Its descriptor, with artifact type and annotations as a list of referrers shows them.
            subject: The manifest or index that it is about.
        """
        ...


def fallback_tag(subject: Digest) -> str:
    """Name the tag of the index of referrers (distribution-spec v1.1, "Referrers Tag Schema")."""
    return f"sha256-{subject.hex}"


def signature_tag(subject: Digest) -> str:
    """Name the tag of cosign's older form (cosign specs/SIGNATURE_SPEC.md, "Tag-based Discovery")."""
    return f"sha256-{subject.hex}.sig"


def add_referrer(index: bytes | None, descriptor: Descriptor) -> bytes:
    """Write the index of referrers with `descriptor` in it.

    What others wrote stays as it is; an index that lists the descriptor's digest already is returned unchanged.

    Raises:
        ImageError: `index` is not an image index.
    """
    document = _EMPTY_INDEX if index is None else _parse_index(index)
    entries = document["manifests"]
    if any(isinstance(entry, dict) and entry.get("digest") == str(descriptor.digest) for entry in entries):
        return index or b""
    try:
        return canonical_json({**document, "manifests": [*entries, descriptor.to_json()]})
    except (TypeError, ValueError) as error:  # a float, or half a surrogate pair, in somebody else's entry
        raise _not_an_index(index or b"") from error


_EMPTY_INDEX: Mapping[str, Any] = MappingProxyType(
    {"schemaVersion": 2, "mediaType": media.INDEX, "manifests": ()}
)


def _parse_index(raw: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _not_an_index(raw) from error
    if not isinstance(document, dict) or not isinstance(document.get("manifests"), list):
        raise _not_an_index(raw)
    return document


def put_fallback(sink: SignatureSink, descriptor: Descriptor, subject: Digest) -> None:
    """Add `descriptor` to the index of referrers under the subject's fallback tag.

    Read, changed and written back: two signers of one image at the same moment can lose one of the two entries
    (distribution-spec v1.1 says so too), so signers of one repository go one after the other.

    Raises:
        ImageError: The tag holds something else than an index.
    """
    tag = fallback_tag(subject)
    before = sink.get_manifest(tag)
    after = add_referrer(before, descriptor)
    if after == before:
        return
    listed = Descriptor(media_type=media.INDEX, digest=Digest.of(after), size_bytes=len(after))
    sink.put_manifest(after, listed)
    sink.tag(listed, tag)


def _not_an_index(raw: bytes) -> ImageError:
    return ImageError(
        f"the list of referrers, {len(raw)} bytes, is not an image index",
        hint="the tag sha256-<hex> of the image holds something else; delete it and sign again",
    )

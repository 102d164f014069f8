"""A whole layout on its way into a registry.

The order, so that no name ever points at something that is not there yet, or not signed yet:
1. Everything is looked up in the layout; what is missing there stops the push before it begins.
2. Blobs, a few at a time, the largest first.
3. Manifests by digest, those that others refer to first.
4. Signatures and other referrers.
5. Tags of profiles, then the tag of the whole.
"""

import json
import re
from dataclasses import dataclass, field

from edgebuild.beside import side_by_side
from edgebuild.errors import ImageError, UsageError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import ROLE_ANNOTATION
from edgebuild.oci.layout_read import Layout
from edgebuild.oci.reference import Reference
from edgebuild.progress import Progress
from edgebuild.registry.push import PushReport, RegistrySink
from edgebuild.registry.signatures import merge_signatures, signed_references

# One blob keeps a line or a disk busy; a second one fills the gaps while a registry closes the first.
_AT_ONCE = 2
_DOCUMENTS = frozenset({media.INDEX, media.MANIFEST, media.DOCKER_INDEX, media.DOCKER_MANIFEST})
_REFERRERS_TAG = re.compile(r"sha256-([0-9a-f]{64})")
_SIGNATURES_TAG = re.compile(r"sha256-([0-9a-f]{64})\.sig")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPush:
    """What came of a layout's push.

    Attributes:
        digest: Of the index or image that the tag names.
        tags: Every tag given, that of the whole last.
        report: What was sent and what was there.
        signed_for: References that the older signatures in the layout name while none of them is one under which the
            image is published now: podman and skopeo will refuse it until it is signed again. Empty when all is well.
    """

    digest: Digest
    tags: tuple[str, ...]
    report: PushReport
    signed_for: tuple[str, ...]


@dataclass(slots=True)
class _Content:
    """Everything to be sent, each thing once, in an order in which it may be sent."""

    blobs: dict[Digest, tuple[Descriptor, str]] = field(default_factory=dict)
    manifests: dict[Digest, Descriptor] = field(default_factory=dict)
    signatures: list[tuple[Digest, str, Descriptor]] = field(default_factory=list)
    referrers: list[tuple[Digest, Descriptor]] = field(default_factory=list)
    names: dict[str, Descriptor] = field(default_factory=dict)


def push_layout(
    layout: Layout, reference: Reference, *, sink: RegistrySink, progress: Progress
) -> LayoutPush:
    """Copy a layout with its signatures into a repository.

    With a tag in the reference, the layout's main index gets it, and each profile's manifest TAG-<profile>; other
    images in the layout stay behind. Without one, everything goes under the names that it has there.

    Args:
        layout: From `read_layout`.
        reference: Where to; its repository is the one that `sink` writes to.
        sink: From `open_sink`.
        progress: Told when signatures do not fit the reference.

    Raises:
        ImageError: Something is missing or damaged in the layout.
        RegistryError: The registry refused, failed or lied; no tag was touched unless everything else was there.
        UsageError: The reference names another digest than the layout's.
    """
    main = layout.main()
    if reference.digest is not None and reference.digest != main.digest:
        raise UsageError(
            f"{reference} names another image than {layout.path}, which holds {main.digest}",
            hint="give a tag, or leave the digest out",
        )
    content = _gather(layout, main, reference)  # 1.
    _send_blobs(layout, content, sink)  # 2.
    for descriptor in content.manifests.values():  # 3.
        sink.put_manifest(layout.document(descriptor), descriptor)
    for _, tag, descriptor in content.signatures:  # 4.
        merge_signatures(sink, layout.document(descriptor), descriptor, tag)
    for subject, descriptor in content.referrers:
        sink.put_referrer(layout.document(descriptor), descriptor, subject)
    for name, descriptor in content.names.items():  # 5.
        sink.tag(descriptor, name)
    signed_for = _foreign_references(layout, content, reference)
    if signed_for:
        progress.note(
            f"the signatures in {layout.path} are for {', '.join(signed_for)}, not for {reference.name}: "
            "cosign takes them, podman and skopeo do not; sign again after the push"
        )
    return LayoutPush(
        digest=main.digest, tags=tuple(content.names), report=sink.report(), signed_for=signed_for
    )


def _gather(layout: Layout, main: Descriptor, reference: Reference) -> _Content:
    content = _Content()
    named = {entry.annotations.get(media.REF_NAME, ""): entry for entry in layout.entries}
    if reference.tag:
        content.names = _names(layout, main, reference.tag)
        for name in content.names:
            reference.with_tag(name)  # refuses one that is too long
    else:
        content.names = {
            name: entry
            for name, entry in named.items()
            if name and not _REFERRERS_TAG.fullmatch(name) and not _SIGNATURES_TAG.fullmatch(name)
        }
    for entry in (*content.names.values(), main):
        _add_image(layout, entry, content)
    for name, entry in named.items():
        _add_signatures(layout, name, entry, content)
    return content


def _names(layout: Layout, main: Descriptor, tag: str) -> dict[str, Descriptor]:
    """Name each profile's manifest, and the whole last."""
    profiles = {
        f"{tag}-{profile}": child
        for child in layout.children(main)
        if child.media_type in _DOCUMENTS and (profile := child.annotations.get(media.PROFILE_ANNOTATION))
    }
    return {**profiles, tag: main}


def _add_image(layout: Layout, descriptor: Descriptor, content: _Content) -> None:
    """Add an index or manifest after everything that it refers to."""
    if descriptor.digest in content.manifests:
        return
    for child in layout.children(descriptor):
        if child.media_type in _DOCUMENTS:
            _add_image(layout, child, content)
        elif child.digest not in content.blobs:
            layout.blob(child.digest, size_bytes=child.size_bytes)
            content.blobs[child.digest] = child, _title(child)
    content.manifests[descriptor.digest] = descriptor


def _add_signatures(layout: Layout, name: str, entry: Descriptor, content: _Content) -> None:
    """Add what an entry of index.json says about an image that is sent."""
    if (found := _SIGNATURES_TAG.fullmatch(name)) and Digest(found[1]) in content.manifests:
        inner = _Content()
        _add_image(layout, entry, inner)
        content.blobs |= inner.blobs
        content.signatures.append((Digest(found[1]), name, entry))
    elif (found := _REFERRERS_TAG.fullmatch(name)) and Digest(found[1]) in content.manifests:
        for referrer in layout.children(entry):
            inner = _Content()
            _add_image(layout, referrer, inner)
            content.blobs |= inner.blobs
            content.referrers.append((Digest(found[1]), referrer))


def _title(descriptor: Descriptor) -> str:
    role = descriptor.annotations.get(ROLE_ANNOTATION, "")
    kind = descriptor.media_type.rpartition("/")[2]
    return f"{role or ('config' if '.config.' in kind else 'blob')} {descriptor.digest.short}"


def _send_blobs(layout: Layout, content: _Content, sink: RegistrySink) -> None:
    """Send blobs from a few threads; the first failure stops the others."""
    order = sorted(content.blobs.values(), key=lambda pair: pair[0].size_bytes, reverse=True)
    blobs = [
        (layout.blob(descriptor.digest, size_bytes=descriptor.size_bytes), descriptor.digest, title)
        for descriptor, title in order
    ]

    def send(item: tuple[Blob, Digest, str]) -> Digest:
        blob, digest, title = item
        return sink.put_blob(blob, digest=digest, title=title)

    side_by_side(blobs, send, at_once=_AT_ONCE, stop=sink.stop)


def _foreign_references(layout: Layout, content: _Content, reference: Reference) -> tuple[str, ...]:
    """List what the older signatures name, where a published name of the image is signed by none of them."""
    foreign: dict[str, None] = {}
    whole = tuple(content.names)[-1:]
    for subject, _, descriptor in content.signatures:
        named = set(_payload_references(layout, descriptor))
        own = {name for name, entry in content.names.items() if entry.digest == subject} | set(whole)
        if named and not named & {f"{reference.name}:{name}" for name in own}:
            foreign |= dict.fromkeys(sorted(named))
    return tuple(foreign)


def _payload_references(layout: Layout, manifest: Descriptor) -> tuple[str, ...]:
    try:
        return tuple(signed_references(json.loads(layout.document(manifest)), layout.document))
    except ValueError as error:
        raise ImageError(
            f"{layout.path}: the signatures {manifest.digest} are broken: {error}",
            hint="sign the layout again",
        ) from error

"""Image layouts on disk, read: what index.json names, the blobs behind it, and images as values.

Source: image-spec v1.1 image-layout.md.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.errors import ImageError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.image import Image
from edgebuild.oci.index import Index
from edgebuild.oci.layer import ROLE_ANNOTATION, Layer, Role
from edgebuild.oci.platform import Platform

OCI_LAYOUT = "oci-layout"
INDEX_JSON = "index.json"
LAYOUT_VERSION = "1.0.0"
BLOBS = Path("blobs", "sha256")
# In index.json: says that edgebuild may replace the layout, since it wrote it.
WRITER_ANNOTATION = "dev.edgebuild.layout"
# What a document may have; registries refuse more than 4 MiB (distribution-spec v1.1, "Pushing manifests").
DOCUMENT_LIMIT_BYTES = 4 << 20
_INDEXES = frozenset({media.INDEX, media.DOCKER_INDEX})
_MANIFESTS = frozenset({media.MANIFEST, media.DOCKER_MANIFEST})
# Tags of signatures and of lists of referrers (oci/referrers.py), beside which the images stand.
_REFERRER_TAG = re.compile(r"sha256-[0-9a-f]{64}(\.[a-z]+)?")
_HINT = "build it again, or name the folder that holds oci-layout and index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A layout.

    Attributes:
        path: Its folder.
        entries: What index.json points at, in its order.
        annotations: Annotations of index.json itself.
    """

    path: Path
    entries: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    def blob(self, digest: Digest, *, size_bytes: int | None = None) -> Blob:
        """Return a blob; its bytes are not hashed.

        Args:
            digest: Which.
            size_bytes: The size that its descriptor states, if known.

        Raises:
            ImageError: It is missing or of another size.
        """
        path = blob_path(self.path, digest)
        try:
            blob = Blob.of_file(path)
        except OSError as error:
            raise self._broken(f"blob {digest} is missing ({error.strerror})") from error
        if size_bytes is not None and blob.size_bytes != size_bytes:
            raise self._broken(f"blob {digest} has {blob.size_bytes} bytes instead of {size_bytes}")
        return blob

    def reachable(self) -> frozenset[Digest]:
        """Return every blob that the entries lead to, themselves included; a `subject` leads nowhere.

        Raises:
            ImageError: One of them is missing or of another size, or a manifest is broken.
        """
        found: set[Digest] = set()
        waiting = list(self.entries)
        while waiting:
            descriptor = waiting.pop()
            if descriptor.digest in found:
                continue
            found.add(descriptor.digest)
            self.blob(descriptor.digest, size_bytes=descriptor.size_bytes)
            waiting += self.children(descriptor)
        return frozenset(found)

    def children(self, descriptor: Descriptor) -> tuple[Descriptor, ...]:
        """Return what an index or manifest refers to, its `subject` excepted; nothing for other blobs.

        Raises:
            ImageError: It is missing or broken.
        """
        if descriptor.media_type in _INDEXES:
            return self._descriptors(self.document(descriptor), "manifests", descriptor)
        if descriptor.media_type not in _MANIFESTS:
            return ()
        raw = self.document(descriptor)
        config = self._descriptor(self._object(raw, descriptor.digest).get("config"), descriptor)
        return (config, *self._descriptors(raw, "layers", descriptor))

    def document(self, descriptor: Descriptor) -> bytes:
        """Return the raw bytes of a manifest, index or config, after hashing them.

        Raises:
            ImageError: They are missing, too many or not those of the digest.
        """
        blob = self.blob(descriptor.digest, size_bytes=descriptor.size_bytes)
        if blob.size_bytes > DOCUMENT_LIMIT_BYTES:
            raise self._broken(f"{descriptor.digest} is too large for a manifest or config")
        raw = blob.read()
        if Digest.of(raw) != descriptor.digest:
            raise self._broken(f"the bytes of {descriptor.digest} are others than its name says")
        return raw

    def find(self, name: str) -> Descriptor:
        """Return the entry whose tag is `name`.

        Raises:
            ImageError: There is none; the hint names those that are.
        """
        named = {entry.annotations.get(media.REF_NAME): entry for entry in self.entries}
        if name in named:
            return named[name]
        known = ", ".join(key for key in named if key) or "none"
        raise ImageError(f"{self.path} holds no {name!r}", hint=f"tags there: {known}")

    def main(self) -> Descriptor:
        """Return the entry that stands for the whole: the first index, else the only image.

        Raises:
            ImageError: There is no index, and not exactly one image.
        """
        own = tuple(entry for entry in self.entries if not is_signature(entry))
        indexes = tuple(entry for entry in own if entry.media_type in _INDEXES)
        if indexes:
            return indexes[0]
        images = {entry.digest: entry for entry in own}
        if len(images) == 1:
            return next(iter(images.values()))
        raise ImageError(f"{self.path} holds {len(images)} images and no index", hint="name one by its tag")

    def index(self, descriptor: Descriptor | None = None) -> Index:
        """Read an index with its images, by default `main`; an image alone comes as its only member.

        Entries of no platform (BuildKit's attestations, "unknown/unknown") are passed over.

        Raises:
            ImageError: Something is missing or broken.
        """
        descriptor = descriptor or self.main()
        raw = self.document(descriptor)
        if descriptor.media_type not in _INDEXES:
            return Index(images=(self.image(descriptor),), raw=raw)
        images = tuple(
            self.image(entry)
            for entry in self._descriptors(raw, "manifests", descriptor)
            if entry.platform is None or entry.platform.architecture != "unknown"
        )
        return Index(images=images, raw=raw)

    def image(self, descriptor: Descriptor) -> Image:
        """Read an image; a layer without our role came with a base image.

        Raises:
            ImageError: Something is missing or broken.
        """
        manifest = self.document(descriptor)
        parsed = self._object(manifest, descriptor.digest)
        config_descriptor = self._descriptor(parsed.get("config"), descriptor)
        config = self.document(config_descriptor)
        settings = self._object(config, config_descriptor.digest)
        layers = self._descriptors(manifest, "layers", descriptor)
        annotations = parsed.get("annotations")
        stated = annotations.get(media.PROFILE_ANNOTATION, "") if isinstance(annotations, dict) else ""
        return Image(
            profile=descriptor.annotations.get(media.PROFILE_ANNOTATION) or str(stated),
            platform=self._platform(settings, config_descriptor),
            layers=self._layers(layers, settings, config_descriptor),
            config=config,
            manifest=manifest,
        )

    def _platform(self, settings: Mapping[str, Any], where: Descriptor) -> Platform:
        system, architecture = settings.get("os"), settings.get("architecture")
        if not isinstance(system, str) or not isinstance(architecture, str):
            raise self._broken(f"config {where.digest} names no platform")
        return Platform(os=system, architecture=architecture, variant=str(settings.get("variant") or ""))

    def _layers(
        self, descriptors: tuple[Descriptor, ...], settings: Mapping[str, Any], where: Descriptor
    ) -> tuple[Layer, ...]:
        rootfs = settings.get("rootfs")
        diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(diff_ids, list) or len(diff_ids) != len(descriptors):
            raise self._broken(f"config {where.digest} and its manifest disagree on the number of layers")
        layers = []
        for descriptor, diff_id in zip(descriptors, diff_ids, strict=True):
            try:
                role = Role(descriptor.annotations.get(ROLE_ANNOTATION, Role.BASE))
                inner = Digest.parse(str(diff_id))
            except ValueError as error:
                raise self._broken(f"layer {descriptor.digest}: {error}") from error
            layers.append(
                Layer(
                    role=role,
                    media_type=descriptor.media_type,
                    digest=descriptor.digest,
                    diff_id=inner,
                    blob=self.blob(descriptor.digest, size_bytes=descriptor.size_bytes),
                )
            )
        return tuple(layers)

    def _descriptors(self, raw: bytes, key: str, where: Descriptor) -> tuple[Descriptor, ...]:
        found = self._object(raw, where.digest).get(key)
        if not isinstance(found, list):
            raise self._broken(f"{where.digest} has no list {key!r}")
        return tuple(self._descriptor(item, where) for item in found)

    def _descriptor(self, document: object, where: Descriptor) -> Descriptor:
        try:
            return Descriptor.from_json(document)
        except ValueError as error:
            raise self._broken(f"{where.digest}: {error}") from error

    def _object(self, raw: bytes, where: Digest) -> dict[str, Any]:
        return _object(raw, f"{self.path}: {where}")

    def _broken(self, what: str) -> ImageError:
        return ImageError(f"{self.path}: {what}", hint="the layout is incomplete or damaged: build it again")


def is_signature(entry: Descriptor) -> bool:
    """Tell whether an entry of index.json is a signature or list of referrers, not an image or index of images."""
    name = entry.annotations.get(media.REF_NAME, "")
    return bool(entry.artifact_type) or _REFERRER_TAG.fullmatch(name) is not None


def blob_path(layout: Path, digest: Digest) -> Path:
    """Return where a layout keeps a blob."""
    return layout / BLOBS / digest.hex


def check_version(path: Path) -> None:
    """Check that a folder is marked as a layout of the version that edgebuild knows.

    Raises:
        ImageError: It is not.
    """
    where = f"{path / OCI_LAYOUT}"
    version = _object(_read(path, OCI_LAYOUT), where).get("imageLayoutVersion")
    if version != LAYOUT_VERSION:
        raise ImageError(f"{where}: layout version {version!r} is not {LAYOUT_VERSION!r}", hint=_HINT)


def read_layout(path: Path) -> Layout:
    """Read the entries of a layout; the blobs are read when they are asked for.

    Raises:
        ImageError: It is no layout, or index.json is broken.
    """
    check_version(path)
    where = f"{path / INDEX_JSON}"
    document = _object(_read(path, INDEX_JSON), where)
    manifests = document.get("manifests")
    if not isinstance(manifests, list):
        raise ImageError(f"{where}: there is no list 'manifests'", hint=_HINT)
    try:
        entries = tuple(Descriptor.from_json(entry) for entry in manifests)
    except ValueError as error:
        raise ImageError(f"{where}: {error}", hint=_HINT) from error
    annotations = document.get("annotations")
    return Layout(
        path=path, entries=entries, annotations=annotations if isinstance(annotations, dict) else {}
    )


def _read(path: Path, name: str) -> bytes:
    try:
        with (path / name).open("rb") as file:
            return file.read(DOCUMENT_LIMIT_BYTES)
    except OSError as error:
        raise ImageError(
            f"{path} is not an OCI image layout: {name} cannot be read ({error.strerror})", hint=_HINT
        ) from error


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{where} is not JSON: {error}", hint=_HINT) from error
    if not isinstance(document, dict):
        raise ImageError(f"{where} is not a JSON object", hint=_HINT)
    return document

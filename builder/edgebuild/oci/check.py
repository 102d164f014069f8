"""The independent checker of image layouts: reads what was written and says all that is wrong with it.

Shares no code with the writers and none of their values; image-spec v1.1 and docs/design.md ("Anatomy of an image")
are said here a second time, from the reader's side. The steps bear these numbers:

 1. oci-layout and index.json are what image-layout.md wants.
 2. Every descriptor leads to a blob of its size and digest; every blob is read once.
 3. Media types are those that edgebuild writes.
 4. Config and manifest agree: platform, number of layers, diff_ids, history.
 5. Layers keep the rules of `check_layer`.
 6. Layers of one image keep the rules between them: directories agree, only directories repeat, nothing lies below
    another layer's symbolic link, roles in order, bottom first.
 7. Profiles that bake the same model file share its layer, uncompressed; a model in several files has a layer for each, all of
    them and in order.
 8. Indexes name each profile once, lowest demand first in a platform, and `TAG-<profile>` names its manifest.
 9. No other blobs lie there, once the layout is in place.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgebuild.errors import ImageError
from edgebuild.oci.check_across import (
    ROLES,
    PlacedLayer,
    faults_between,
    faults_of_model,
    model_files,
    same_file,
)
from edgebuild.oci.check_layer import LayerFacts, LayerMemory, read_layer
from edgebuild.oci.check_reading import Fault, Pointer, Reading, is_digest

__all__ = ["Fault", "check_layout", "verify_layout"]

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_TAR = "application/vnd.oci.image.layer.v1.tar"
_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
_REF_NAME = "org.opencontainers.image.ref.name"
_INDEX_JSON = "index.json"
_PROFILE = "dev.edgebuild.profile"
_ROLE = "dev.edgebuild.layer.role"
_SIGNATURE_NAME = re.compile(r"sha256-[0-9a-f]{64}(\.[a-z]+)?")
_HINT = "build the layout again; if the fault stays it is one of edgebuild's"


def check_layout(
    path: Path,
    *,
    trusted: frozenset[str] = frozenset(),
    memory: LayerMemory | None = None,
    index: str = _INDEX_JSON,
) -> tuple[Fault, ...]:
    """Check a layout whole, and return every fault found, in the order of reading.

    Layers are streamed: memory is bounded by the names in them.

    Args:
        path: The layout.
        trusted: "sha256:<hex>" of uncompressed layers that are not read again, since their bytes were hashed while they
            were written a moment ago.
        memory: Knows layers that were read before; None reads every one.
        index: Name of the file that is to become index.json. While it has another name, the blobs of the layout that it
            will replace may lie beside its own.

    Raises:
        ImageError: A file of it cannot be read.
    """
    try:
        return _Check(Reading(path), trusted=trusted, memory=memory, index=index).run()
    except OSError as error:
        raise ImageError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def verify_layout(
    path: Path,
    *,
    trusted: frozenset[str] = frozenset(),
    memory: LayerMemory | None = None,
    index: str = _INDEX_JSON,
) -> None:
    """Check a layout whole; see `check_layout`.

    Raises:
        ImageError: It has faults; the message holds all of them, separated by semicolons.
    """
    faults = check_layout(path, trusted=trusted, memory=memory, index=index)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ImageError(f"{path} has {count}: {'; '.join(map(str, faults))}", hint=_HINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """An image that was read, for the rules between images."""

    place: str
    digest: str
    platform: tuple[str, str, str]
    profile: str
    demand: tuple[bool, int, int]
    layers: tuple[PlacedLayer, ...]


@dataclass(slots=True)
class _Check:
    reading: Reading
    trusted: frozenset[str]
    memory: LayerMemory | None
    index: str
    layers: dict[str, LayerFacts] = field(default_factory=dict)
    images: dict[str, _Image] = field(default_factory=dict)

    def run(self) -> tuple[Fault, ...]:
        self._check_marker()
        self._check_entries(self._index_json())
        self._check_models()
        if self.index == _INDEX_JSON:
            self._check_leftovers()
        return tuple(dict.fromkeys(self.reading.faults))

    # 1

    def _check_marker(self) -> None:
        marker = self.reading.parse("oci-layout", self.reading.file("oci-layout"))
        if marker is not None and marker.get("imageLayoutVersion") != "1.0.0":
            self.reading.add("oci-layout", f"version is {marker.get('imageLayoutVersion')!r}, not '1.0.0'")

    def _index_json(self) -> tuple[object, ...]:
        document = self.reading.parse(_INDEX_JSON, self.reading.file(self.index))
        if document is None:
            return ()
        if document.get("schemaVersion") != 2:
            self.reading.add("index.json", "schemaVersion is not 2")
        if document.get("mediaType", _INDEX) != _INDEX:
            self.reading.add("index.json", f"mediaType is {document['mediaType']!r}")
        return self.reading.items("index.json", document, "manifests")

    # 8

    def _check_entries(self, entries: tuple[object, ...]) -> None:
        named: dict[str, str] = {}
        loose: list[tuple[str, str]] = []
        indexes: list[tuple[str, str]] = []
        for number, entry in enumerate(entries):
            place = f"index.json entry {number}"
            pointer = self.reading.follow(place, entry, (_INDEX, _MANIFEST))
            document = None if pointer is None else self.reading.document(place, pointer.digest)
            if pointer is None or document is None:
                continue
            name = pointer.annotations.get(_REF_NAME, "")
            if name in named:
                self.reading.add(place, f"the tag {name!r} is given twice")
            if name:
                named[name] = pointer.digest
            if _is_signature(pointer, document):
                self._check_signature(place, pointer, document)
            elif pointer.media_type == _INDEX:
                indexes.append((name, pointer.digest))
                self._check_index(f"index {name}" if name else place, document)
            else:
                loose.append((place, pointer.digest))
                self._check_image(place, pointer, document)
        if not indexes:
            self.reading.add("index.json", "names no index of images")
        self._check_names(indexes, loose, named)

    def _check_names(
        self, indexes: list[tuple[str, str]], loose: list[tuple[str, str]], named: Mapping[str, str]
    ) -> None:
        members = {}
        for name, digest in indexes:
            members[name] = self._members(digest)
            for image in members[name]:
                tag = f"{name}-{image.profile}"
                if name and named.get(tag) != image.digest:
                    self.reading.add(image.place, f"index.json does not name its manifest {tag!r}")
        inside = {image.digest for images in members.values() for image in images}
        for place, digest in loose:
            if digest not in inside:
                self.reading.add(place, "is an image that no index holds")

    def _members(self, index_digest: str) -> tuple[_Image, ...]:
        found = (self.reading.documents.get(index_digest) or {}).get("manifests")
        entries = found if isinstance(found, list) else []
        digests = [str(entry.get("digest")) for entry in entries if isinstance(entry, dict)]
        return tuple(self.images[digest] for digest in digests if digest in self.images)

    def _check_index(self, where: str, document: Mapping[str, Any]) -> None:
        self.reading.check_head(where, document, _INDEX)
        images = []
        for number, entry in enumerate(self.reading.items(where, document, "manifests")):
            place = f"{where} entry {number}"
            pointer = self.reading.follow(place, entry, (_MANIFEST,))
            manifest = None if pointer is None else self.reading.document(place, pointer.digest)
            if pointer is None or manifest is None:
                continue
            if not pointer.annotations.get(_PROFILE):
                self.reading.add(place, f"has no annotation {_PROFILE}")
            if pointer.platform is None:
                self.reading.add(place, "has no platform")
            images.append(self._check_image(place, pointer, manifest))
        if not images:
            self.reading.add(where, "holds no image")
        self._check_order(images)

    def _check_order(self, images: list[_Image]) -> None:
        profiles: set[str] = set()
        highest: dict[tuple[str, str, str], tuple[bool, int, int]] = {}
        for image in images:
            if image.profile and image.profile in profiles:
                self.reading.add(image.place, f"profile {image.profile!r} comes twice")
            profiles.add(image.profile)
            if image.demand < highest.get(image.platform, image.demand):
                self.reading.add(image.place, "stands behind an image of its platform that demands more")
            highest[image.platform] = max(image.demand, highest.get(image.platform, image.demand))

    def _check_signature(self, place: str, pointer: Pointer, document: Mapping[str, Any]) -> None:
        """Follow a signature or list of referrers; what they mean is for the verifier of signatures."""
        if pointer.media_type == _INDEX:
            for number, entry in enumerate(self.reading.items(place, document, "manifests")):
                inner = f"{place} entry {number}"
                found = self.reading.follow(inner, entry, (_MANIFEST,))
                manifest = None if found is None else self.reading.document(inner, found.digest)
                if found is not None and manifest is not None:
                    self._check_signature(inner, found, manifest)
            return
        self.reading.check_head(place, document, _MANIFEST)
        subject = document.get("subject", {"digest": pointer.digest})
        if not isinstance(subject, dict) or not is_digest(subject.get("digest")):
            self.reading.add(place, "subject is no descriptor with a sha256 digest")
        for part in (document.get("config"), *self.reading.items(place, document, "layers")):
            blob = self.reading.follow(place, part)
            if blob is not None:
                self.reading.compare_opaque(place, blob.digest)

    # 4

    def _check_image(self, place: str, pointer: Pointer, manifest: Mapping[str, Any]) -> _Image:
        if pointer.digest in self.images:
            return self.images[pointer.digest]
        self.reading.check_head(place, manifest, _MANIFEST)
        found = self.reading.follow(f"{place} config", manifest.get("config"), (_CONFIG,))
        config = (None if found is None else self.reading.document(f"{place} config", found.digest)) or {}
        platform = _platform(config)
        if pointer.platform is not None and _platform(pointer.platform) != platform:
            self.reading.add(place, f"platform is not the config's {'/'.join(filter(None, platform))}")
        layers = self._check_layers(place, self.reading.items(place, manifest, "layers"), config)
        image = _Image(
            place=place,
            digest=pointer.digest,
            platform=platform,
            profile=pointer.annotations.get(_PROFILE, ""),
            demand=_demand(config, layers),
            layers=layers,
        )
        self.images[pointer.digest] = image
        for number, message in (*faults_between(layers), *faults_of_model(layers)):  # 6, 7
            self.reading.add(f"{place} layer {number}", message)
        return image

    def _check_layers(
        self, place: str, entries: tuple[object, ...], config: Mapping[str, Any]
    ) -> tuple[PlacedLayer, ...]:
        diff_ids = self._diff_ids(place, config, len(entries))
        layers = []
        for number, entry in enumerate(entries):
            inner = f"{place} layer {number}"
            pointer = self.reading.follow(inner, entry, (_TAR, _GZIP))
            if pointer is None:
                continue
            role = pointer.annotations.get(_ROLE, "")
            if role not in ROLES:
                self.reading.add(inner, f"role {role!r} is not one of {', '.join(ROLES)}")
            facts = self._check_layer(inner, pointer, role)
            stated = diff_ids[number] if number < len(diff_ids) else None
            if stated is not None and facts.diff_id and stated != f"sha256:{facts.diff_id}":
                self.reading.add(inner, f"diff_id is sha256:{facts.diff_id}, not {stated}")
            layers.append(PlacedLayer(number, role, facts))
        return tuple(layers)

    def _diff_ids(self, place: str, config: Mapping[str, Any], count: int) -> tuple[object, ...]:
        rootfs = config.get("rootfs")
        found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(rootfs, dict) or rootfs.get("type") != "layers" or not isinstance(found, list):
            self.reading.add(f"{place} config", "has no rootfs of type 'layers' with diff_ids")
            return ()
        if len(found) != count:
            self.reading.add(f"{place} config", f"has {len(found)} diff_ids for {count} layers")
        history = config.get("history")
        steps = history if isinstance(history, list) else []
        filled = [step for step in steps if isinstance(step, dict) and not step.get("empty_layer")]
        if len(filled) != count:
            self.reading.add(f"{place} config", f"has a history of {len(filled)} layers for {count}")
        return tuple(found)

    # 5

    def _check_layer(self, place: str, pointer: Pointer, role: str) -> LayerFacts:
        key = f"{pointer.digest} {pointer.media_type}"
        if pointer.digest in self.trusted and pointer.media_type == _TAR:
            digest = pointer.digest.removeprefix("sha256:")
            self.layers[key] = LayerFacts(
                digest=digest, diff_id=digest, members={}, faults=(), format_faults=()
            )
        if key not in self.layers:
            self.layers[key] = self._read_layer(pointer)
        facts = self.layers[key]
        self.reading.compare(place, pointer.digest, facts.digest)
        self.reading.add(place, *facts.faults)
        if role != "base":
            self.reading.add(place, *facts.format_faults)
        if role == "model" and pointer.media_type != _TAR:  # 7
            self.reading.add(place, "a model's layer is compressed")
        return facts

    def _read_layer(self, pointer: Pointer) -> LayerFacts:
        blob = self.reading.blob(pointer.digest)
        known = None if self.memory is None else self.memory.recall(blob, pointer.digest)
        facts = known or read_layer(blob, compressed=pointer.media_type == _GZIP)
        if self.memory is not None and known is None and not (facts.faults or facts.format_faults):
            self.memory.remember(facts)
        return facts

    # 7

    def _check_models(self) -> None:
        """Find model files that lie in two layers; their bytes are compared only where name and size agree."""
        known: dict[tuple[str, int], tuple[str, str]] = {}
        for image in self.images.values():
            for name, size_bytes, digest in model_files(image.layers):
                place, other = known.setdefault((name, size_bytes), (image.place, digest))
                if other != digest and same_file(self.reading.blob(other), self.reading.blob(digest), name):
                    self.reading.add(
                        image.place, f"{name} is the same file as in {place}, but in another layer"
                    )

    # 9

    def _check_leftovers(self) -> None:
        blobs = self.reading.path / "blobs"
        if not blobs.is_dir():
            self.reading.add("blobs", "is missing")
            return
        for path in sorted(blobs.rglob("*")):
            if path.is_file() and (path.parent.name != "sha256" or path.name not in self.reading.seen):
                self.reading.add(str(path.relative_to(self.reading.path)), "nothing refers to it")


def _is_signature(pointer: Pointer, document: Mapping[str, Any]) -> bool:
    name = pointer.annotations.get(_REF_NAME, "")
    marked = pointer.artifact_type or document.get("artifactType") or "subject" in document
    return bool(marked) or _SIGNATURE_NAME.fullmatch(name) is not None


def _demand(config: Mapping[str, Any], layers: tuple[PlacedLayer, ...]) -> tuple[bool, int, int]:
    """Rank what a device must have: accelerator, then processor, then memory in bytes.

    Processor and memory are in our labels; an image without them demands nothing.
    """
    settings = config.get("config")
    labels = settings.get("Labels") if isinstance(settings, dict) else None
    if not isinstance(labels, dict):
        labels = {}
    variants = str(labels.get("dev.edgebuild.cpu.variants", "")).split(",")
    expected = str(labels.get("dev.edgebuild.cpu.expected", ""))
    need = str(labels.get("dev.edgebuild.memory.need_bytes", ""))
    return (
        any(layer.role == "accelerator" for layer in layers),
        variants.index(expected) if expected in variants else 0,
        int(need) if re.fullmatch(r"[0-9]{1,18}", need) else 0,
    )


def _platform(document: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        str(document.get("os", "")),
        str(document.get("architecture", "")),
        str(document.get("variant", "")),
    )

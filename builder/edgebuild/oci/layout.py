"""Image layouts on disk, written: blobs first, each under a temporary name until it is whole, index.json last.

Until index.json is replaced, in one step, the folder is the layout that it was; a build that fails, is killed or does not
pass the checker changes nothing that index.json leads to. What it may leave, the next build in the same folder clears away.

Nothing is forced to disk: gigabytes would cost more time than all the rest, every reader compares digests anyway, and
a file cut short by a power failure shows by its size, since files only ever grow while they are written.

Source: image-spec v1.1 image-layout.md.
"""

import errno
import fcntl
import hashlib
import os
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from edgebuild.canonical import canonical_json
from edgebuild.errors import ImageError, ToolError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.check_layer import LayerMemory
from edgebuild.oci.copying import copy_hashed
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.layout_read import (
    BLOBS,
    DOCUMENT_LIMIT_BYTES,
    INDEX_JSON,
    LAYOUT_VERSION,
    OCI_LAYOUT,
    WRITER_ANNOTATION,
    Layout,
    blob_path,
    check_version,
    is_signature,
    read_layout,
)
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import put_fallback
from edgebuild.oci.seals import WHOLE_FILE, NoSeals, Seals, known_blob_digest, remember_blob_digest
from edgebuild.progress import Progress

__all__ = ["CONTAINERD_NAME", "Layout", "LayoutSink", "read_layout"]

CONTAINERD_NAME = "io.containerd.image.name"

_PARTIAL = ".edgebuild-"
# Smaller blobs are hashed and checked sooner than their seal is looked up.
_SEAL_FROM_BYTES = 1 << 18
# Larger model layers are not read a second time by the checker.
_READ_BACK_BYTES = 64 << 20


class LayoutSink:
    """A sink that writes a layout; used as a context, it takes effect when the context ends without an error.

    Blobs may be put from several threads, each blob from one; all else is done by one thread.

    An entry of index.json is written for each tag and for what was put without being tagged or referred to, images
    before signatures.
    """

    def __init__(
        self,
        path: Path,
        *,
        progress: Progress,
        seals: Seals | None = None,
        reference: Reference | None = None,
        extend: bool = False,
        checked: LayerMemory | None = None,
    ) -> None:
        """Say where and how; nothing is touched before the context begins.

        Args:
            path: The folder; it is made, with those above it, if it is not there.
            progress: Told of blobs that are copied.
            seals: What is known of files hashed earlier.
            reference: The repository that the tags belong to; containerd and Docker name the images by it.
            extend: Whether what the layout holds already stays, tags that are given again excepted.
            checked: Have the independent checker read all back before it takes effect, with this memory of layers; model
                layers above 64 MiB excepted, which were hashed while they were written. None leaves that out.
        """
        self.path = path
        self._progress = progress
        self._seals: Seals = seals if seals is not None else NoSeals()
        self._reference = reference
        self._extend = extend
        self._checked = checked
        self._lock = -1
        self._locked = False
        self._committed = False
        self._made: list[Path] = []
        self._put: dict[Digest, Descriptor] = {}
        self._tags: dict[str, Descriptor] = {}
        self._named: set[Digest] = set()
        self._good: set[Digest] = set()
        self._untagged: tuple[Descriptor, ...] = ()
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError):
                raise self._failed(error, "an image layout") from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._commit()
        except OSError as fault:
            raise self._failed(fault, INDEX_JSON) from fault
        finally:
            self._abandon()

    def put_blob(self, blob: Blob, *, digest: Digest | None, title: str) -> Digest:
        """Store a blob unless it is there already; see `Sink.put_blob`.

        Raises:
            ToolError: The layout cannot be written, or the blob's file cannot be read or changes meanwhile.
            ImageError: The blob has another digest than the one given.
        """
        known = digest or self._known(blob)
        if known is not None and self._holds(known, blob.size_bytes):
            return known
        partial = self.path / BLOBS / f"{_PARTIAL}blob-{threading.get_native_id()}"
        try:
            found = self._copy(blob, partial, title)
            if digest is not None and found != digest:
                raise ImageError(
                    f"{title} has the digest {found} instead of {digest}",
                    hint="its file was changed or damaged: edgebuild cache verify finds such entries",
                )
            self._settle(partial, found)
        except OSError as error:
            raise self._failed(error, title) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        if digest is None and blob.size_bytes >= _SEAL_FROM_BYTES:
            remember_blob_digest(blob, self._seals, found)
        return found

    def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Store a manifest or index; see `Sink.put_manifest`.

        Raises:
            ToolError: The layout cannot be written.
            ValueError: The descriptor is not that of the bytes.
        """
        if (Digest.of(raw), len(raw)) != (descriptor.digest, descriptor.size_bytes):
            raise ValueError(f"{descriptor.digest} does not describe the {len(raw)} bytes given with it")
        self._put[descriptor.digest] = descriptor
        if self._holds(descriptor.digest, len(raw)):
            return
        try:
            partial = self.path / BLOBS / f"{_PARTIAL}manifest"
            partial.write_bytes(raw)
            self._settle(partial, descriptor.digest)
        except OSError as error:
            raise self._failed(error, f"manifest {descriptor.digest.short}") from error

    def tag(self, descriptor: Descriptor, name: str) -> None:
        """Give a stored manifest or index a tag, taking it from another; see `Sink.tag`."""
        self._tags[name] = self._put[descriptor.digest] = descriptor
        self._named.add(descriptor.digest)

    def stop(self) -> None:
        """End what other threads copy; see `Sink.stop`."""
        self._stop.set()

    def get_manifest(self, reference: str) -> bytes | None:
        """Read a stored manifest by tag or "sha256:<hex>"; see `SignatureSink.get_manifest`.

        Raises:
            ImageError: It is damaged.
        """
        if reference.startswith("sha256:"):
            path = blob_path(self.path, Digest.parse(reference))
            if not path.is_file():
                return None
            digest, size_bytes = Digest.parse(reference), path.stat().st_size
            found = Descriptor(media_type=media.MANIFEST, digest=digest, size_bytes=size_bytes)
        elif reference in self._tags:
            found = self._tags[reference]
        else:
            return None
        return Layout(path=self.path, entries=(), annotations={}).document(found)

    def put_referrer(self, raw: bytes, descriptor: Descriptor, subject: Digest) -> None:
        """Store a manifest and list it under its subject's fallback tag; see `SignatureSink.put_referrer`."""
        self.put_manifest(raw, descriptor)
        put_fallback(self, descriptor, subject)

    def _known(self, blob: Blob) -> Digest | None:
        if all(isinstance(part, bytes) for part in blob.parts):
            return Digest.of(blob.read())
        return known_blob_digest(blob, self._seals)

    def _holds(self, digest: Digest, size_bytes: int) -> bool:
        """Tell whether a blob is there and sound: its seal says so, or it is hashed now, once."""
        if digest in self._good:
            return True
        path = blob_path(self.path, digest)
        try:
            if path.stat().st_size != size_bytes:
                return False
            sealed = size_bytes >= _SEAL_FROM_BYTES and self._seals.known_digest(path, WHOLE_FILE) == digest
            if not sealed:
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest.hex:
                        return False
        except OSError:
            return False
        if not sealed and size_bytes >= _SEAL_FROM_BYTES:
            self._seals.remember_digest(path, WHOLE_FILE, digest)
        self._good.add(digest)
        return True

    def _copy(self, blob: Blob, partial: Path, title: str) -> Digest:
        with self._progress.task(title, total_bytes=blob.size_bytes) as task:
            out = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                return copy_hashed(blob, out, task, stop=self._stop)
            finally:
                os.close(out)

    def _settle(self, partial: Path, digest: Digest) -> None:
        """Give a whole blob its name."""
        target = blob_path(self.path, digest)
        if not target.exists():
            self._made.append(target)
        partial.replace(target)
        self._good.add(digest)
        if target.stat().st_size >= _SEAL_FROM_BYTES:
            self._seals.remember_digest(target, WHOLE_FILE, digest)

    def _open(self) -> None:
        marker = self.path / OCI_LAYOUT
        foreign = [name for name in (INDEX_JSON, BLOBS.parts[0]) if (self.path / name).exists()]
        if foreign and not marker.exists():
            raise ImageError(
                f"{self.path} holds {foreign[0]} but is no image layout",
                hint="choose another folder with --output DIR, or empty this one",
            )
        self._make_directory(self.path)
        self._take_lock(marker)
        self._make_directory(self.path / BLOBS)
        self._sweep()
        self._take_over()

    def _make_directory(self, path: Path) -> None:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self._made.append(folder)

    def _take_lock(self, marker: Path) -> None:
        """Hold the file that marks a layout, so that no other build writes here meanwhile."""
        new = not marker.exists()
        self._lock = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another build that failed may have removed the file between the two calls.
            held = marker.exists() and os.path.samestat(marker.stat(), os.fstat(self._lock))
        except BlockingIOError:
            held = False
        if not held:
            raise ToolError(
                f"another build is writing to {self.path}",
                hint="wait for it, or choose another folder with --output DIR",
            )
        self._locked = True
        if new:
            self._made.append(marker)
        # New, or left by a build that was killed in this moment.
        if not os.pread(self._lock, 1024, 0).strip():
            os.pwrite(self._lock, canonical_json({"imageLayoutVersion": LAYOUT_VERSION}), 0)
        check_version(self.path)

    def _sweep(self) -> None:
        """Remove what killed builds left unfinished."""
        for folder in (self.path, self.path / BLOBS):
            for partial in folder.glob(f"{_PARTIAL}*"):
                partial.unlink()

    def _take_over(self) -> None:
        """Look at what the layout holds already."""
        if not (self.path / INDEX_JSON).exists():
            return
        try:
            old = read_layout(self.path)
        except ImageError:
            if self._extend:
                raise
            return
        if self._extend:
            named = {entry.annotations.get(media.REF_NAME, ""): entry for entry in old.entries}
            self._untagged = tuple(e for e in old.entries if not e.annotations.get(media.REF_NAME))
            self._tags = {name: entry for name, entry in named.items() if name}
        elif old.entries and WRITER_ANNOTATION not in old.annotations:
            raise ImageError(
                f"{self.path} is an image layout that edgebuild did not write",
                hint="choose another folder with --output DIR, or remove this one",
            )

    def _commit(self) -> None:
        entries = self._entries()
        reachable = Layout(path=self.path, entries=entries, annotations={}).reachable()
        document = {
            "schemaVersion": 2,
            "mediaType": media.INDEX,
            "manifests": [entry.to_json() for entry in entries],
            "annotations": {WRITER_ANNOTATION: "1"},
        }
        raw = canonical_json(document)
        assert len(raw) <= DOCUMENT_LIMIT_BYTES
        partial = self.path / f"{_PARTIAL}{INDEX_JSON}"
        partial.write_bytes(raw)
        if self._checked is not None:
            self._check(partial.name, self._checked)
        partial.replace(self.path / INDEX_JSON)
        self._committed = True
        keep = {digest.hex for digest in reachable}
        for blob in (self.path / BLOBS).iterdir():
            if blob.name not in keep:
                blob.unlink()

    def _check(self, index: str, memory: LayerMemory) -> None:
        from edgebuild.oci.check import verify_layout  # noqa: PLC0415 - only those who ask for it need the checker

        large = frozenset(
            str(digest)
            for digest in self._good
            if blob_path(self.path, digest).stat().st_size > _READ_BACK_BYTES
        )
        with self._progress.task("check the layout"):
            verify_layout(self.path, trusted=large, memory=memory, index=index)

    def _entries(self) -> tuple[Descriptor, ...]:
        """List what index.json names: images and indexes, then signatures, otherwise in the order they came."""
        tagged = tuple(self._entry(descriptor, name) for name, descriptor in self._tags.items())
        known = Layout(path=self.path, entries=tuple(self._put.values()), annotations={})
        inner = {child.digest for entry in known.entries for child in known.children(entry)}
        untagged = {entry.digest: entry for entry in (*self._untagged, *self._put.values())}
        alone = (untagged[digest] for digest in untagged if digest not in self._named | inner)
        return tuple(sorted((*tagged, *alone), key=_rank))

    def _entry(self, descriptor: Descriptor, name: str) -> Descriptor:
        named = replace(descriptor, annotations={**descriptor.annotations, media.REF_NAME: name})
        if self._reference is None or descriptor.digest not in self._named or is_signature(named):
            return named
        full = f"{self._reference.name}:{name}"
        return replace(named, annotations={**named.annotations, CONTAINERD_NAME: full})

    def _abandon(self) -> None:
        """End: without a commit, remove what was made since the start, newest first."""
        if self._locked:
            with suppress(OSError):
                self._sweep()
        if not self._committed:
            for path in reversed(self._made):
                with suppress(OSError):
                    if path.is_dir():
                        path.rmdir()
                    else:
                        path.unlink()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _failed(self, error: OSError, what: str) -> ToolError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return ToolError(
                f"no space left in {self.path} for {what}",
                hint="make room there, or choose another folder with --output DIR",
            )
        return ToolError(
            f"{what} cannot be written to {self.path}: {error.strerror}",
            hint="choose a folder that you can write to with --output DIR",
        )


def _rank(entry: Descriptor) -> int:
    """Sort indexes before the images in them, and both before signatures."""
    if is_signature(entry):
        return 2
    return 0 if entry.media_type == media.INDEX else 1

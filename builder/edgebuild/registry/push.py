"""Writing to a registry: blobs first, then manifests by digest, then tags, so that no name points at half an image."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum

from edgebuild.errors import RegistryError
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import fallback_tag, put_fallback
from edgebuild.progress import Progress
from edgebuild.registry.client import RegistryClient
from edgebuild.registry.faults import RefusedError, TransientError, lie
from edgebuild.registry.patience import Limits
from edgebuild.registry.transport import Body, Transport
from edgebuild.registry.upload import CHUNK_BYTES, Session, Upload, open_session

# Two signers of one image can lose an entry of the fallback index; the one who notices writes it again.
_FALLBACK_TRIES = 3


class Way(StrEnum):
    """How a blob came to be in the repository."""

    SENT = "sent"
    PRESENT = "present"
    MOUNTED = "mounted"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedBlob:
    """One blob of a push.

    Attributes:
        title: What it is.
        digest: Its digest.
        size_bytes: Its size.
        way: Whether it had to be sent.
    """

    title: str
    digest: Digest
    size_bytes: int
    way: Way


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReport:
    """What a push did.

    Attributes:
        blobs: Every blob, in the order in which they were done.
        manifests: Digests of manifests and indexes, in the order written.
        tags: Names given, in order.
    """

    blobs: tuple[PushedBlob, ...]
    manifests: tuple[Digest, ...]
    tags: tuple[str, ...]

    def bytes_by(self, way: Way) -> int:
        """Sum the blobs that came one way, in bytes."""
        return sum(blob.size_bytes for blob in self.blobs if blob.way is way)


class RegistrySink:
    """A repository as a place to write to. Safe to use from several threads."""

    def __init__(
        self,
        transport: Transport,
        *,
        progress: Progress,
        mount_from: str = "",
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Make ready; nothing is sent yet.

        Args:
            transport: To the repository, for "pull,push".
            progress: Told of every blob that is sent.
            mount_from: Another repository of the registry whose blobs may be mounted, or "".
            chunk_bytes: Size of a PATCH.
        """
        self._transport = transport
        self._client = RegistryClient(transport)
        self._progress = progress
        self._mount_from = mount_from
        self._chunk_bytes = chunk_bytes
        self._lock = threading.Lock()
        self._raw: dict[Digest, bytes] = {}
        self._blobs: list[PushedBlob] = []
        self._tags: list[str] = []

    @property
    def client(self) -> RegistryClient:
        """Reads the same repository."""
        return self._client

    def report(self) -> PushReport:
        """Say what was done so far."""
        with self._lock:
            return PushReport(blobs=tuple(self._blobs), manifests=tuple(self._raw), tags=tuple(self._tags))

    def stop(self) -> None:
        """End what other threads do here, waits included; nothing can be sent afterwards."""
        self._transport.closing.set()

    def check_access(self) -> None:
        """Find out whether we may push, before hours of work: open an upload and give it up.

        Raises:
            RegistryError: We may not, or the registry cannot be reached.
        """
        transport = self._transport
        request = transport.request(
            "POST", transport.url("blobs/uploads/"), "upload", expect=(202,), body=Body.of_bytes(b"")
        )
        answer = transport.send(request)
        if location := answer.headers.get("Location"):
            cancel = transport.request(
                "DELETE", str(transport.target(answer.url, location)), "upload", expect=(202, 204)
            )
            # A registry that does not take it back clears abandoned uploads by itself.
            with suppress(RefusedError, TransientError):
                transport.send_once(cancel)

    def put_blob(self, blob: Blob, *, digest: Digest | None, title: str) -> Digest:
        """Store a blob unless it is there already (see `Sink.put_blob`).

        Raises:
            RegistryError: The registry refused, or failed to the end of our patience.
            ToolError: The blob cannot be read.
        """
        way, session = Way.SENT, None
        if digest is not None:
            if self._client.has_blob(digest, blob.size_bytes):
                way = Way.PRESENT
            elif self._mount_from:
                way, session = self._mount(digest, title)
        if way is Way.SENT:
            with self._progress.task(f"push {title}", total_bytes=blob.size_bytes) as task:
                upload = Upload(
                    self._transport,
                    blob,
                    digest=digest,
                    title=title,
                    task=task,
                    chunk_bytes=self._chunk_bytes,
                )
                digest = upload.run(session)
        assert digest is not None
        with self._lock:
            self._blobs.append(PushedBlob(title=title, digest=digest, size_bytes=blob.size_bytes, way=way))
        return digest

    def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Store a manifest or index by its digest (see `Sink.put_manifest`).

        Raises:
            RegistryError: The registry refused, failed, or stored something else.
        """
        self._put_manifest(raw, descriptor, str(descriptor.digest))

    def tag(self, descriptor: Descriptor, name: str) -> None:
        """Give a stored manifest or index a tag, or move the tag to it.

        Raises:
            RegistryError: The manifest is not there, or the registry refused, failed or stored something else.
        """
        raw = self._raw.get(descriptor.digest)
        if raw is None:
            raw = self._client.manifest(descriptor.digest).raw
        self._put_manifest(raw, descriptor, name)
        with self._lock:
            self._tags.append(name)

    def get_manifest(self, reference: str) -> bytes | None:
        """Read a manifest or index by tag or digest; None when it is not there."""
        return self._client.get_manifest(reference)

    def put_referrer(self, raw: bytes, descriptor: Descriptor, subject: Digest) -> None:
        """Store a manifest that refers to `subject` and make it findable (see `SignatureSink.put_referrer`).

        Raises:
            RegistryError: The registry refused, failed, or loses the entry again and again.
            ImageError: The fallback tag holds something else than an index.
        """
        # distribution-spec v1.1 "Pushing Manifests with Subject": OCI-Subject says that the registry lists it itself.
        if self._put_manifest(raw, descriptor, str(descriptor.digest)) == str(subject):
            return
        for _ in range(_FALLBACK_TRIES):
            put_fallback(self, descriptor, subject)
            if self._lists(fallback_tag(subject), descriptor.digest):
                return
        raise RegistryError(
            f"{self._client.name}:{fallback_tag(subject)} lost its new entry {_FALLBACK_TRIES} times",
            hint="somebody else signs the same image at this moment; sign again when they are done",
        )

    def _put_manifest(self, raw: bytes, descriptor: Descriptor, name: str) -> str:
        """Store a manifest under a digest or tag and return what the answer says in OCI-Subject."""
        if Digest.of(raw) != descriptor.digest:
            raise ValueError(f"{descriptor.digest} is not the digest of the manifest to be stored")
        request = self._transport.request(
            "PUT",
            self._transport.url(f"manifests/{name}"),
            f"manifest {name}",
            expect=(200, 201, 202),
            headers={"Content-Type": descriptor.media_type},
            body=Body.of_bytes(raw),
        )
        answer = self._transport.send(request)
        told = answer.headers.get("Docker-Content-Digest", "")
        if told.startswith("sha256:") and told != str(descriptor.digest):
            raise lie(request.call, f"it is {told}", str(descriptor.digest))
        with self._lock:
            self._raw.setdefault(descriptor.digest, raw)
        return str(answer.headers.get("OCI-Subject", ""))

    def _mount(self, digest: Digest, title: str) -> tuple[Way, Session | None]:
        """Take the blob from the other repository; else return the session that the registry opened, if any."""
        try:
            session = open_session(
                self._transport,
                title,
                chunk_bytes=self._chunk_bytes,
                mount=digest,
                mount_from=self._mount_from,
            )
        except RefusedError:
            return Way.SENT, None  # mounting is a favour; sending tells whether anything is really wrong
        return (Way.MOUNTED, None) if session is None else (Way.SENT, session)

    def _lists(self, tag: str, digest: Digest) -> bool:
        raw = self._client.get_manifest(tag)
        document = json.loads(raw) if raw is not None else {}
        return any(
            isinstance(entry, dict) and entry.get("digest") == str(digest)
            for entry in document.get("manifests", ())
        )


@contextmanager
def open_sink(
    reference: Reference,
    *,
    environment: Mapping[str, str],
    progress: Progress,
    limits: Limits | None = None,
    mount_from: str = "",
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[RegistrySink]:
    """Write to a reference's repository while the context lasts.

    Args:
        reference: Its registry and repository count.
        environment: The host's, for proxies, certificates and logins.
        progress: Told of blobs and waits.
        limits: Patience; None for the usual.
        mount_from: Another repository of the same registry that blobs may be mounted from, or "".
        chunk_bytes: Size of a PATCH.
    """
    with Transport(
        reference.registry,
        reference.repository,
        actions="pull,push",
        environment=environment,
        progress=progress,
        limits=limits or Limits(),
        mount_from=mount_from,
    ) as transport:
        yield RegistrySink(transport, progress=progress, mount_from=mount_from, chunk_bytes=chunk_bytes)

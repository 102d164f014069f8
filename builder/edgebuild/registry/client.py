"""Reading from a registry. Nothing is believed: bytes are hashed, sizes are capped while they stream."""

import hashlib
import json
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from edgebuild.errors import RegistryError
from edgebuild.network import Stop
from edgebuild.oci import descriptor as media
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import fallback_tag
from edgebuild.pieces import Lanes
from edgebuild.progress import Progress
from edgebuild.registry.blobs import BlobReading
from edgebuild.registry.faults import RefusedError, lie
from edgebuild.registry.patience import Limits
from edgebuild.registry.transport import MANIFEST_BYTES, Answer, Transport

ACCEPTED = (media.INDEX, media.MANIFEST, media.DOCKER_INDEX, media.DOCKER_MANIFEST)
_MAX_PAGES = 64
_MAX_REFERRERS = 256
_MAX_TAGS = 100_000
_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?')


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or index as a registry gave it.

    Attributes:
        raw: Its bytes, hashed.
        descriptor: Media type, digest and size; the media type is the document's own word where it has one.
    """

    raw: bytes
    descriptor: Descriptor


class RegistryClient:
    """Reads one repository."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self._transport.registry}/{self._transport.repository}"

    def find_manifest(self, reference: str | Digest) -> Manifest | None:
        """Read a manifest or index; None when it is not there.

        Args:
            reference: A tag, or a digest as such or as text.

        Raises:
            RegistryError: It is larger than 4 MiB, its bytes have another digest than was asked for or than the
                registry says, or the registry failed.
        """
        name = str(reference)
        request = self._transport.request(
            "GET",
            self._transport.url(f"manifests/{name}"),
            f"manifest {name}",
            expect=(200,),
            headers={"Accept": ", ".join(ACCEPTED)},
        )
        try:
            answer = self._transport.send(request, cap_bytes=MANIFEST_BYTES)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        digest = Digest.of(answer.body)
        told = answer.headers.get("Docker-Content-Digest", "")
        for wanted in (
            name if name.startswith("sha256:") else "",
            told if told.startswith("sha256:") else "",
        ):
            if wanted and wanted != str(digest):
                raise lie(request.call, f"it is {wanted}", str(digest))
        return Manifest(
            raw=answer.body,
            descriptor=Descriptor(media_type=_media_type(answer), digest=digest, size_bytes=len(answer.body)),
        )

    def manifest(self, reference: str | Digest) -> Manifest:
        """Read a manifest or index that has to be there.

        Raises:
            RegistryError: It is not there, or as for `find_manifest`.
        """
        found = self.find_manifest(reference)
        if found is None:
            joint = "@" if str(reference).startswith("sha256:") else ":"
            raise RegistryError(
                f"{self.name}{joint}{reference} is not there",
                hint="check the name and the tag; a private repository also looks like this without a login",
            )
        return found

    def get_manifest(self, reference: str) -> bytes | None:
        """Read the bytes of a manifest or index; None when it is not there (see `find_manifest`)."""
        found = self.find_manifest(reference)
        return None if found is None else found.raw

    def has_manifest(self, reference: str | Digest) -> bool:
        """Ask whether a manifest or index is there."""
        request = self._transport.request(
            "HEAD",
            self._transport.url(f"manifests/{reference}"),
            f"manifest {reference}",
            expect=(200, 404),
            headers={"Accept": ", ".join(ACCEPTED)},
        )
        return self._transport.send(request).status == 200

    def has_blob(self, digest: Digest, size_bytes: int) -> bool:
        """Ask whether a blob is there.

        Raises:
            RegistryError: It is there with another size, or the registry failed.
        """
        request = self._transport.request(
            "HEAD", self._transport.url(f"blobs/{digest}"), f"blob {digest}", expect=(200, 404)
        )
        answer = self._transport.send(request)
        if answer.status == 404:
            return False
        told = answer.headers.get("Content-Length", "")
        if told.isdecimal() and int(told) != size_bytes:
            raise lie(request.call, f"it has {told} bytes", f"one of {size_bytes} bytes")
        return True

    def get_blob(self, digest: Digest, *, size_bytes: int | None = None) -> Iterator[bytes]:
        """Yield a blob as it comes; the end is only reached when its digest is right.

        Bytes are handed out before the digest is known: whoever keeps them must throw them away on an error.

        Args:
            digest: What to read.
            size_bytes: Its size when known; more bytes are an error at once.

        Raises:
            RegistryError: It is not there, is another one, or the registry failed.
        """
        hasher = hashlib.sha256()
        for chunk in self.stream_blob(digest, size_bytes=size_bytes):
            hasher.update(chunk)
            yield chunk
        if hasher.hexdigest() != digest.hex:
            raise self.other_blob(digest, Digest(hasher.hexdigest()))

    def stream_blob(
        self,
        digest: Digest,
        *,
        size_bytes: int | None = None,
        offset_bytes: int = 0,
        upto_bytes: int | None = None,
        lanes: Lanes | None = None,
    ) -> Generator[bytes]:
        """Yield a blob as it comes, from a place on; whoever reads compares its digest.

        A connection that breaks is made again and goes on where it broke.

        Args:
            digest: What to read.
            size_bytes: Its size when known; more bytes are an error at once.
            offset_bytes: First byte wanted.
            upto_bytes: Byte before which it ends, where that is not the blob's end.
            lanes: Fetch the pieces of a large blob whose size is known, several at once; None for one connection.

        Raises:
            RegistryError: It is not there, or the registry failed.
        """
        return BlobReading(
            self._transport,
            digest,
            size_bytes=size_bytes,
            offset_bytes=offset_bytes,
            upto_bytes=upto_bytes,
            lanes=lanes,
        ).chunks()

    @property
    def stop(self) -> Stop:
        """Set, it ends all that is read here, waits included; nothing can be asked afterwards."""
        return self._transport.closing

    def other_blob(self, digest: Digest, found: Digest) -> RegistryError:
        """Make the error for a blob whose bytes have another digest than was asked for."""
        return lie(self._transport.call("GET", f"blob {digest}"), f"it is {digest}", str(found))

    def read_blob(self, descriptor: Descriptor, *, cap_bytes: int) -> bytes:
        """Read a small blob whole.

        Raises:
            RegistryError: It is larger than `cap_bytes`, or as for `get_blob`.
        """
        if descriptor.size_bytes > cap_bytes:
            raise RegistryError(
                f"blob {descriptor.digest} of {self.name} has {descriptor.size_bytes} bytes, more than {cap_bytes}",
                hint="nothing of that kind is that large; check what the name points to",
            )
        return b"".join(self.get_blob(descriptor.digest, size_bytes=descriptor.size_bytes))

    def list_referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        """List what refers to a manifest, by the referrers API; () where the registry has none.

        Raises:
            RegistryError: The list is no index, has more than 256 entries, or the registry failed.
        """
        found: dict[Digest, Descriptor] = {}
        try:
            for answer in self._pages(f"referrers/{subject}", f"referrers of {subject}"):
                # distribution-spec v1.1 "Listing Referrers": the answer MUST be an image index; servers without
                # the API that answer 200 to everything do exist.
                if answer.headers.get("Content-Type", "").partition(";")[0].strip() != media.INDEX:
                    return ()
                for entry in _manifests(answer.body, self.name):
                    found.setdefault(entry.digest, entry)
                if len(found) > _MAX_REFERRERS:
                    raise RegistryError(
                        f"{self.name}@{subject} has more than {_MAX_REFERRERS} referrers",
                        hint="delete the ones that are not needed",
                    )
        except RefusedError as error:
            if error.status in {404, 405}:
                return ()
            raise
        return tuple(found.values())

    def referrers(self, subject: Digest, *, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """List what refers to a manifest, by the API and by the fallback tag, each entry once.

        Args:
            subject: The manifest.
            artifact_type: Only these; "" for all.
        """
        entries = {entry.digest: entry for entry in self.list_referrers(subject)}
        if (index := self.get_manifest(fallback_tag(subject))) is not None:
            for entry in _manifests(index, self.name):
                entries.setdefault(entry.digest, entry)
        return tuple(e for e in entries.values() if not artifact_type or e.artifact_type == artifact_type)

    def tags(self) -> tuple[str, ...]:
        """List all tags, in the registry's order.

        Raises:
            RegistryError: There is no such repository, or the registry failed.
        """
        tags: list[str] = []
        for answer in self._pages("tags/list", "the tags"):
            names = _parse(answer.body, self.name).get("tags") or []
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise _broken_list(self.name)
            tags += names
            if len(tags) > _MAX_TAGS:
                raise RegistryError(f"{self.name} has more than {_MAX_TAGS} tags")
        return tuple(tags)

    def _pages(self, path: str, what: str) -> Iterator[Answer]:
        """Yield the pages of a list (distribution-spec v1.1, "Link" header, RFC 5988)."""
        url = self._transport.url(path)
        for _ in range(_MAX_PAGES):
            answer = self._transport.send(self._transport.request("GET", url, what, expect=(200,)))
            yield answer
            following = _NEXT.search(answer.headers.get("Link", ""))
            if following is None:
                return
            url = str(self._transport.target(answer.url, following[1]))
        raise RegistryError(f"{self.name}: the list of {what} does not end after {_MAX_PAGES} pages")


@contextmanager
def open_client(
    reference: Reference,
    *,
    environment: Mapping[str, str],
    progress: Progress,
    limits: Limits | None = None,
) -> Iterator[RegistryClient]:
    """Read from a reference's repository while the context lasts."""
    with Transport(
        reference.registry,
        reference.repository,
        actions="pull",
        environment=environment,
        progress=progress,
        limits=limits or Limits(),
    ) as transport:
        yield RegistryClient(transport)


def _media_type(answer: Answer) -> str:
    # image-spec v1.1 manifest.md: mediaType SHOULD be in the document and then MUST match the Content-Type.
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    own = document.get("mediaType") if isinstance(document, dict) else None
    return (
        own if isinstance(own, str) else str(answer.headers.get("Content-Type", "")).partition(";")[0].strip()
    )


def _parse(raw: bytes, name: str) -> dict[str, object]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _broken_list(name) from error
    if not isinstance(document, dict):
        raise _broken_list(name)
    return document


def _manifests(raw: bytes, name: str) -> Iterator[Descriptor]:
    entries = _parse(raw, name).get("manifests")
    if not isinstance(entries, list):
        raise _broken_list(name)
    for entry in entries:
        try:
            yield Descriptor.from_json(entry)
        except ValueError as error:
            raise _broken_list(name) from error


def _broken_list(name: str) -> RegistryError:
    return RegistryError(
        f"{name}: the registry answered with a list that is none", hint="the registry is broken"
    )

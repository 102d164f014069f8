"""One blob on its way into a registry.

The procedure (distribution-spec v1.1, "Pushing blobs"):
1. Ask for a session, with a mount from another repository when there is one.
2. Send the blob in PATCHes; after each the registry says how far it got.
3. After a fault ask the session how far it got and go on there. distribution 2.8 lets a session die with a broken
   PATCH; then begin again with a new one.
4. Close the session with the digest.
A registry that takes no PATCHes gets the whole blob in one PUT. A small blob of known digest goes that way at once.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2

from edgebuild.errors import RegistryError, ToolError
from edgebuild.oci.blob import Blob
from edgebuild.oci.digest import Digest
from edgebuild.progress import Task
from edgebuild.registry.client import RegistryClient
from edgebuild.registry.faults import RefusedError, TransientError, lie
from edgebuild.registry.transport import Answer, Body, Request, Transport

# Large enough to keep a fast line busy, small enough to be sent again.
CHUNK_BYTES = 64 << 20
# How registries say that they do not take uploads in parts.
_NO_PATCH = frozenset({400, 404, 405, 411, 415, 416, 501})
# How they say that a session is gone or stands elsewhere.
_DEAD_SESSION = frozenset({400, 404, 410, 416})
_OCTETS = {"Content-Type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An upload that a registry has opened.

    Attributes:
        url: Where its next request goes.
        offset_bytes: How far it got.
        chunk_bytes: Size of the next PATCH.
        is_fresh: Whether nothing was sent to it yet.
    """

    url: httpx2.URL
    offset_bytes: int
    chunk_bytes: int
    is_fresh: bool


class Source:
    """A blob that is hashed as far as it has been read, however often parts of it are read again."""

    def __init__(self, blob: Blob, *, title: str, hashed: bool, task: Task, closing: threading.Event) -> None:
        self.size_bytes = blob.size_bytes
        self._blob = blob
        self._title = title
        self._hasher = hashlib.sha256() if hashed else None
        self.reached_bytes = 0
        self._task = task
        self._closing = closing

    def body(self, offset_bytes: int, size_bytes: int) -> Body:
        """Give a part of the blob to be sent."""
        return Body(
            size_bytes=size_bytes, chunks=lambda: self._chunks(offset_bytes, offset_bytes + size_bytes)
        )

    def digest(self) -> Digest:
        """Return the digest of the whole, reading what has not been read yet."""
        assert self._hasher is not None
        for _ in (
            self._chunks(self.reached_bytes, self.size_bytes) if self.reached_bytes < self.size_bytes else ()
        ):
            pass
        return Digest(self._hasher.hexdigest())

    def _chunks(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `begin` to `end`, exactly that many.

        Raises:
            ToolError: The file cannot be read, or it changed.
        """
        at = begin
        try:
            for chunk in self._blob.chunks(offset_bytes=begin):
                self._check(at + len(chunk))
                piece = chunk[: end - at]
                self._note(at, piece)
                at += len(piece)
                yield piece
                if at == end < self.size_bytes:
                    return
        except (OSError, ValueError) as error:
            raise ToolError(
                f"{self._title} cannot be read: {error}", hint="let no other program write to it meanwhile"
            ) from error

    def _check(self, at: int) -> None:
        if self._closing.is_set():
            raise RegistryError(f"{self._title}: the push was stopped")
        if at > self.size_bytes:
            raise ValueError("a file grew while it was read")

    def _note(self, at: int, piece: bytes) -> None:
        fresh = at + len(piece) - self.reached_bytes
        if fresh > 0:
            if self._hasher is not None:
                self._hasher.update(piece[len(piece) - fresh :])
            self._task.advance(fresh)
            self.reached_bytes += fresh


def open_session(
    transport: Transport, title: str, *, chunk_bytes: int, mount: Digest | None = None, mount_from: str = ""
) -> Session | None:
    """Ask for a session (1.); None when the blob was mounted instead.

    Args:
        transport: The registry.
        title: What the blob is.
        chunk_bytes: Size of a PATCH; the registry may want larger ones.
        mount: A blob to take from another repository when it is there.
        mount_from: That repository.

    Raises:
        RegistryError: The registry refused, or failed to the end of our patience.
    """
    query = f"?mount={mount}&from={mount_from}" if mount is not None else ""
    request = transport.request(
        "POST",
        transport.url(f"blobs/uploads/{query}"),
        f"upload of {title}",
        expect=(201, 202) if mount is not None else (202,),
        body=Body.of_bytes(b""),
    )
    # Asked twice, it opens two sessions; the registry clears the abandoned one by itself.
    answer = transport.send(request)
    if answer.status == 201:
        return None
    least = answer.headers.get("OCI-Chunk-Min-Length", "")
    return Session(
        url=_next_url(transport, request, answer),
        offset_bytes=0,
        chunk_bytes=max(chunk_bytes, int(least) if least.isdecimal() and len(least) < 12 else 0),
        is_fresh=True,
    )


class Upload:
    """Sends one blob that the registry does not have."""

    def __init__(
        self,
        transport: Transport,
        blob: Blob,
        *,
        digest: Digest | None,
        title: str,
        task: Task,
        chunk_bytes: int,
    ) -> None:
        self._transport = transport
        self._client = RegistryClient(transport)
        self._patience = transport.patience()
        self._digest = digest
        self._title = title
        self._task = task
        self._chunk_bytes = chunk_bytes
        self._source = Source(blob, title=title, hashed=digest is None, task=task, closing=transport.closing)
        self._best_bytes = 0
        self._has_tried_close = False

    def run(self, session: Session | None) -> Digest:
        """Send everything and return the digest.

        Args:
            session: One that is open already, or None.

        Raises:
            RegistryError: The registry refused, or failed to the end of our patience.
            ToolError: The blob cannot be read.
        """
        size_bytes = self._source.size_bytes
        if self._digest is not None and size_bytes <= self._chunk_bytes:
            return self._send_whole(self._digest, session)
        while True:
            try:
                if self._has_tried_close and self._client.has_blob(
                    digest := self._known_digest(), size_bytes
                ):
                    return digest  # only the answer was lost
                session = session or self._open()
                while session.offset_bytes < size_bytes:
                    session = self._send_part(session)
                self._has_tried_close = True
                return self._close(session, self._known_digest(), body=None)
            except TransientError as fault:
                self._wait(fault)
                session = self._find_session(session)
            except RefusedError as refused:
                if session is None or session.offset_bytes == size_bytes:
                    raise
                if session.is_fresh and refused.status in _NO_PATCH:
                    self._task.status("the registry takes no parts: sending it whole")
                    return self._send_whole(self._known_digest(), None)
                if refused.status not in _DEAD_SESSION:
                    raise
                self._wait(refused)
                session = None

    def _known_digest(self) -> Digest:
        return self._digest or self._source.digest()

    def _open(self) -> Session:
        session = open_session(self._transport, self._title, chunk_bytes=self._chunk_bytes)
        assert session is not None  # nothing was to be mounted
        return session

    def _send_part(self, session: Session) -> Session:
        """Send one PATCH and return where the session stands then (2.)."""
        begin = session.offset_bytes
        size_bytes = min(session.chunk_bytes, self._source.size_bytes - begin)
        request = self._transport.request(
            "PATCH",
            str(session.url),
            f"upload of {self._title}",
            expect=(201, 202, 204),
            headers={**_OCTETS, "Content-Range": f"{begin}-{begin + size_bytes - 1}"},
            body=self._source.body(begin, size_bytes),
        )
        answer = self._transport.send_once(request)
        reached = _reached(answer, default=begin + size_bytes)
        if reached > begin + size_bytes:
            raise lie(request.call, f"it has {reached} bytes", f"sent {begin + size_bytes} bytes")
        if reached <= begin:
            raise TransientError(f"{request.call}: the registry kept nothing of {size_bytes} bytes")
        if reached > self._best_bytes:
            self._best_bytes = reached
            self._patience.progressed()
        return Session(
            url=_next_url(self._transport, request, answer, session.url),
            offset_bytes=reached,
            chunk_bytes=session.chunk_bytes,
            is_fresh=False,
        )

    def _find_session(self, session: Session | None) -> Session | None:
        """Ask a session how far it got (3.); None when it is of no use any more."""
        if session is None:
            return None
        request = self._transport.request(
            "GET", str(session.url), f"upload of {self._title}", expect=(200, 202, 204)
        )
        try:
            answer = self._transport.send(request)
        except RefusedError:
            return None
        reached = _reached(answer, default=0)
        # distribution says "0-0" for an empty session, which is also what one byte looks like.
        reached = 0 if reached == 1 else reached
        if reached > self._source.reached_bytes:
            return None
        return Session(
            url=_next_url(self._transport, request, answer, session.url),
            offset_bytes=reached,
            chunk_bytes=session.chunk_bytes,
            is_fresh=False,
        )

    def _close(self, session: Session, digest: Digest, *, body: Body | None) -> Digest:
        """End a session with the digest (4.), with the rest of the blob or without."""
        joint = "&" if session.url.query else "?"
        request = self._transport.request(
            "PUT",
            f"{session.url}{joint}digest=sha256%3A{digest.hex}",
            f"upload of {self._title}",
            expect=(201, 204),
            headers=_OCTETS,
            body=body or Body.of_bytes(b""),
            answer_s=self._transport.limits.commit_s,
        )
        answer = self._transport.send_once(request)
        told = answer.headers.get("Docker-Content-Digest", "")
        if told.startswith("sha256:") and told != str(digest):
            raise lie(request.call, f"it is {told}", str(digest))
        return digest

    def _send_whole(self, digest: Digest, session: Session | None) -> Digest:
        body = self._source.body(0, self._source.size_bytes)
        while True:
            try:
                return self._close(session or self._open(), digest, body=body)
            except TransientError as fault:
                self._wait(fault)
                session = None
                if self._client.has_blob(digest, self._source.size_bytes):
                    return digest  # only the answer was lost

    def _wait(self, fault: RegistryError) -> None:
        self._task.status("waiting for the registry")
        self._patience.wait(fault)
        self._task.status("")


def _next_url(
    transport: Transport, request: Request, answer: Answer, default: httpx2.URL | None = None
) -> httpx2.URL:
    location = answer.headers.get("Location", "")
    if location:
        return transport.target(answer.url, location)
    if default is None:
        raise RegistryError(
            f"{request.call}: the answer does not say where to send to", hint="the registry is broken"
        )
    return default


def _reached(answer: Answer, *, default: int) -> int:
    """Read how many bytes a session has from the header Range, "0-<last byte>"."""
    found = _RANGE.fullmatch(answer.headers.get("Range", "").strip())
    return int(found[1]) + 1 if found else default

"""What can go wrong, and on which requests."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Answer this instead of doing what was asked, after the request's body was read."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRequest:
    """Close the connection once so many bytes of the request's body were read; an upload is dead then.

    Attributes:
        after_bytes: 0 closes before the body.
        reset: By a reset instead of an orderly end.
    """

    after_bytes: int = 0
    reset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CutResponse:
    """Do what was asked, then close the connection after so many bytes of the response's body.

    Attributes:
        after_bytes: 0 closes after the header, which announces the whole length.
        reset: By a reset instead of an orderly end.
    """

    after_bytes: int = 0
    reset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Say nothing for a while, then close the connection; ends at once when the registry is stopped."""

    seconds: float = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt:
    """Flip a bit in the first byte of the response's body; its length and headers stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongDigest:
    """Answer with this in Docker-Content-Digest."""

    digest: str = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Inflate:
    """Answer with a body padded with spaces to this length, as a manifest of 100 MB.

    Attributes:
        announced: Give the length in Content-Length; otherwise the body comes in chunks, its length unknown.
    """

    size_bytes: int
    announced: bool = True


Effect = Answer | CutRequest | CutResponse | Hang | Corrupt | WrongDigest | Inflate


class Injection:
    """A fault that waits for its requests.

    Attributes:
        effect: What goes wrong.
        hits: How often it did.
    """

    def __init__(
        self, effect: Effect, *, method: str = "", path: str = "", skip: int = 0, times: int | None = 1
    ) -> None:
        self.effect = effect
        self.hits = 0
        self._method = method
        self._path = re.compile(path)
        self._skip = skip
        self._left = times
        self._lock = threading.Lock()

    def end(self) -> None:
        """Meet no more requests."""
        with self._lock:
            self._left = 0

    def strikes(self, method: str, path: str) -> bool:
        """Say whether this request meets the fault, and count it."""
        if self._method not in {"", method} or not self._path.search(path):
            return False
        with self._lock:
            if self._skip > 0:
                self._skip -= 1
                return False
            if self._left == 0:
                return False
            if self._left is not None:
                self._left -= 1
            self.hits += 1
            return True

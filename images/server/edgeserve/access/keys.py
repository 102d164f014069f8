"""API keys: made here, kept hashed, compared in constant time.

A key is `edge_` and 43 characters of base64url, 256 random bits. Its line in the key file is

    ID sha256:HEX

where HEX is the SHA-256 of the whole key. A plain fast hash is the right one: nobody guesses 256 random bits, with however
fast a hash, while one made slow for the sake of passwords (scrypt, Argon2) would cost a small device a tenth of a second
for each request, wrong keys included. So that it stays right, nothing but keys of this form is ever accepted.
An id may stand on several lines: old and new key of one client while it changes over. `#` begins a comment.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from edgeserve.access.watched import AccessError, read_file

_PREFIX: Final = "edge_"
_KEY: Final = re.compile(_PREFIX + r"[A-Za-z0-9_-]{43}\Z")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})\Z")
_LONGEST_BYTES: Final = 1 << 20
# Every request is compared with all of them: 1000 take 0.3 ms on a slow core.
_MOST: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """One line of the key file; `digest` is SHA-256, 32 bytes."""

    id: str
    digest: bytes


class KeyRing:
    """The keys that are accepted."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[KnownKey]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> str | None:
        """Return the id of a key, None for one that is not accepted; takes the same time wherever it stands."""
        if _KEY.match(key) is None:
            return None
        digest = hashlib.sha256(key.encode("ascii")).digest()
        found = None
        for known in self._keys:
            if compare_digest(known.digest, digest):
                found = known.id
        return found


def make_key(client_id: str) -> tuple[str, str]:
    """Make a new key.

    Returns:
        The key, to be given to the client and kept nowhere else, and its line for the key file.

    Raises:
        AccessError: The id is not one.
    """
    if _ID.match(client_id) is None:
        raise AccessError(
            f"{client_id[:80]!a} is no id: up to 64 letters, digits and . _ @ -, a letter or digit first"
        )
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, f"{client_id} sha256:{hashlib.sha256(key.encode('ascii')).hexdigest()}"


def load_keys(path: str) -> KeyRing:
    """Read a key file.

    Raises:
        AccessError: It cannot be read, or a line of it is wrong; the first such line is named.
    """
    data = read_file(path, longest_bytes=_LONGEST_BYTES)
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise AccessError(f"{path}: not UTF-8 at byte {error.start}") from None
    keys: dict[bytes, KnownKey] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        known = _parse_line(words, f"{path}:{number}")
        if known.digest in keys:
            raise AccessError(f"{path}:{number}: the same key as that of {keys[known.digest].id}")
        keys[known.digest] = known
    if len(keys) > _MOST:
        raise AccessError(f"{path}: {len(keys)} keys, more than {_MOST}")
    return KeyRing(tuple(keys.values()))


def _parse_line(words: Sequence[str], place: str) -> KnownKey:
    """Parse one line; a fault never shows the words, which may be a key by mistake."""
    match = _HASH.match(words[-1])
    if len(words) != 2 or match is None:
        raise AccessError(f"{place}: not `ID sha256:HEX`, as `edgeserve keys new --id ID` prints it")
    if _ID.match(words[0]) is None:
        raise AccessError(f"{place}: the id is not up to 64 letters, digits and . _ @ -")
    return KnownKey(id=words[0], digest=bytes.fromhex(match[1]))

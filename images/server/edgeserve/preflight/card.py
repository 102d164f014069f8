"""The model's document, as far as it identifies the files: `/etc/edgebuild/model.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
# A tar's header blocks and its end: what stands around a file in its layer is a few KiB.
_MOST_AROUND_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """One file: sha256(before ‖ its bytes ‖ after_bytes zeros) is `digest`, the identity of the layer that brings it."""

    size_bytes: int
    digest: str
    before: bytes
    after_bytes: int


def load_identities(card: Path) -> Mapping[str, FileIdentity]:
    """Read the document.

    Returns:
        The files by path.

    Raises:
        ValueError: It cannot be read or does not say what it must; the message says why on one line.
    """
    try:
        document = json.loads(card.read_bytes())
        return {str(item["path"]): _identity(item) for item in document["files"]}
    except OSError as error:
        raise ValueError(f"{card} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{card} does not describe the model's files: {type(error).__name__}: {error}"
        ) from error


def model_digest(identities: Mapping[str, FileIdentity], files: tuple[str, ...]) -> str:
    """Name what is served as the image's label does: the digest of the only file, or the sha256 of those of several, a line each.

    Raises:
        KeyError: A file is not described.
    """
    digests = [identities[file].digest for file in files]
    if len(digests) == 1:
        return digests[0]
    import hashlib  # noqa: PLC0415 - brings OpenSSL, which most servers do without

    lines = "".join(f"{digest}\n" for digest in digests)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _identity(item: Mapping[str, Any]) -> FileIdentity:
    size, after = item["size_bytes"], item["digest_after_zero_bytes"]
    if type(size) is not int or size < 0 or type(after) is not int or not 0 <= after <= _MOST_AROUND_BYTES:
        raise ValueError("a size is no size")
    if not _DIGEST.match(item["digest"]):
        raise ValueError("a digest is no sha256")
    return FileIdentity(
        size_bytes=size,
        digest=item["digest"],
        before=bytes.fromhex(item["digest_before_hex"]),
        after_bytes=after,
    )

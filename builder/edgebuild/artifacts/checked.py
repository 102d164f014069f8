"""What the checker found in layers that it has read: a blob that did not change since needs no second reading.

The blob's seal says that its bytes are still those of its digest; the facts are kept by that digest and by the rules
that were applied, so that rules which change have everything read again.
"""

import json
from pathlib import Path

from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.oci import check_layer
from edgebuild.oci.check_layer import Kind, LayerFacts, Member
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import WHOLE_FILE


class CheckedLayers:
    """A `LayerMemory` in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rules = Digest.of(Path(check_layer.__file__).read_bytes()).short

    def recall(self, blob: Path, digest: str) -> LayerFacts | None:
        """See `LayerMemory`."""
        if self._store.known_digest(blob, WHOLE_FILE) != Digest.parse(digest):
            return None
        raw = self._store.recall(self._name(digest))
        try:
            return None if raw is None else _parse(raw, digest.removeprefix("sha256:"))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def remember(self, facts: LayerFacts) -> None:
        """See `LayerMemory`."""
        members = [
            [name, member.kind.value, member.mode, member.uid, member.gid, member.mtime_s, member.size_bytes]
            for name, member in facts.members.items()
        ]
        raw = canonical_json({"diff_id": facts.diff_id, "members": members})
        self._store.remember(self._name(f"sha256:{facts.digest}"), raw)

    def _name(self, digest: str) -> str:
        return f"{digest.removeprefix('sha256:')}-{self._rules}"


def _parse(raw: bytes, digest: str) -> LayerFacts:
    document = json.loads(raw)
    members = {
        name: Member(kind=Kind(kind), mode=mode, uid=uid, gid=gid, mtime_s=mtime_s, size_bytes=size_bytes)
        for name, kind, mode, uid, gid, mtime_s, size_bytes in document["members"]
    }
    return LayerFacts(
        digest=digest, diff_id=document["diff_id"], members=members, faults=(), format_faults=()
    )

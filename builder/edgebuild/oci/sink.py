"""Where an image is written to: a layout on disk or a registry. Both take blobs first, then manifests, then names."""

from typing import Protocol

from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest


class Sink(Protocol):
    """A place that keeps blobs and manifests. Blobs may be put from several threads."""

    def put_blob(self, blob: Blob, *, digest: Digest | None, title: str) -> Digest:
        """Store a blob unless it is there already; read it at most once.

        Args:
            blob: The bytes.
            digest: Their digest when it is known; None hashes them on their way.
            title: What it is, for progress: "model demo.gguf".

        Returns:
            The digest of what was stored.
        """
        ...

    def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Store a manifest or index whose blobs and manifests are all there, without a name."""
        ...

    def tag(self, descriptor: Descriptor, name: str) -> None:
        """Give a stored manifest or index a tag. Called last, when everything it needs is there."""
        ...

    def stop(self) -> None:
        """End what other threads put here: they fail soon, and nothing can be put afterwards."""
        ...

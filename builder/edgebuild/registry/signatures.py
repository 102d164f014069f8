"""Signatures in cosign's older form on their way from a layout: joined with those that the registry holds.

Source: cosign specs/SIGNATURE_SPEC.md, "Tag-based Discovery": one layer a signature, more signers append layers.
"""

import json
from collections.abc import Callable, Iterator, Mapping

from edgebuild.canonical import canonical_json
from edgebuild.errors import RegistryError
from edgebuild.oci import descriptor as media
from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.registry.push import RegistrySink

_SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
_NEVER = "0001-01-01T00:00:00Z"  # what cosign writes


def merge_signatures(sink: RegistrySink, raw: bytes, descriptor: Descriptor, tag: str) -> None:
    """Put signatures under their tag, beside those that others put there; their blobs are in the repository.

    Args:
        sink: The repository.
        raw: The manifest with our signatures.
        descriptor: Its descriptor.
        tag: `sha256-<hex>.sig`.

    Raises:
        RegistryError: The tag names something else than signatures, or the registry failed.
    """
    existing = sink.get_manifest(tag)
    if existing is not None and existing != raw:
        theirs, ours = _layers(existing, tag), _layers(raw, tag)
        missing = [layer for layer in ours if layer not in theirs]
        if not missing:
            return
        raw, descriptor = _joined(sink, [*theirs, *missing])
    sink.put_manifest(raw, descriptor)
    sink.tag(descriptor, tag)


def signed_references(manifest: Mapping[str, object], read: Callable[[Descriptor], bytes]) -> Iterator[str]:
    """Yield the references that the payloads of a signature manifest name; their signatures are not checked.

    Raises:
        ValueError: A payload is none.
    """
    layers = manifest.get("layers")
    for entry in layers if isinstance(layers, list) else ():
        layer = Descriptor.from_json(entry)
        if layer.media_type != _SIMPLE_SIGNING:
            continue
        payload = json.loads(read(layer))
        try:
            yield str(payload["critical"]["identity"]["docker-reference"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"payload {layer.digest} names no reference") from error


def _layers(raw: bytes, tag: str) -> list[Descriptor]:
    try:
        document = json.loads(raw)
        layers = [Descriptor.from_json(layer) for layer in document["layers"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_signatures(tag) from error
    if any(layer.media_type != _SIMPLE_SIGNING for layer in layers):
        raise _not_signatures(tag)
    return layers


def _not_signatures(tag: str) -> RegistryError:
    return RegistryError(
        f"the tag {tag} names something else than signatures",
        hint="find out who wrote it; delete the tag and push again",
    )


def _joined(sink: RegistrySink, layers: list[Descriptor]) -> tuple[bytes, Descriptor]:
    config = canonical_json(
        {
            "architecture": "",
            "created": _NEVER,
            "history": [{"created": _NEVER} for _ in layers],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
            "config": {},
        }
    )
    digest = sink.put_blob(Blob.of_bytes(config), digest=Digest.of(config), title="list of signatures")
    raw = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "config": Descriptor(media_type=media.CONFIG, digest=digest, size_bytes=len(config)).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )
    return raw, Descriptor(media_type=media.MANIFEST, digest=Digest.of(raw), size_bytes=len(raw))

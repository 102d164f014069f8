"""cosign's older form: payloads, and the manifest under the tag `sha256-<hex>.sig` that carries them.

Source: cosign specs/SIGNATURE_SPEC.md; the bytes are those that cosign 2.5.0 and 3.1.1 write (measured).
"""

import base64
from dataclasses import dataclass

from edgebuild.canonical import canonical_json
from edgebuild.errors import SignatureError
from edgebuild.oci import descriptor as media
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.signing.keys import SigningKey
from edgeverify.documents import field, objects, parse_base64, parse_object
from edgeverify.errors import VerificationError
from edgeverify.image import CANDIDATES, MANIFEST_BYTES
from edgeverify.keys import verify_data
from edgeverify.legacy import PAYLOAD_TYPE, SIGNATURE_ANNOTATION, SIMPLE_SIGNING

_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time: cosign writes no time of signing either


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacySignatures:
    """All signatures of one image in the older form.

    Attributes:
        manifest: Raw bytes of the manifest for the tag `sha256-<hex>.sig`.
        config: Raw bytes of its config.
        payloads: The blobs that are new in it.
    """

    manifest: bytes
    config: bytes
    payloads: tuple[bytes, ...]


def make_payload(digest: Digest, reference: str) -> bytes:
    """Write the payload that says: `reference` is the image `digest`.

    Args:
        digest: Of the manifest or index.
        reference: "HOST/REPO:TAG". cosign itself writes no tag, but then the default identity rule of podman and skopeo
            (matchRepoDigestOrExact) refuses the signature.
    """
    return canonical_json(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": str(digest)},
                "type": PAYLOAD_TYPE,
            },
            "optional": None,
        }
    )


def add_signatures(
    existing: bytes | None, digest: Digest, key: SigningKey, *, references: tuple[str, ...]
) -> LegacySignatures | None:
    """Sign `digest` once for each reference and append what is new to the signatures that are there.

    Layers by others stay as they are. A payload that this key has signed already, be it by cosign with another nonce, is
    not signed again, so signing twice changes nothing.

    Args:
        existing: The manifest that the tag names now, or None.
        digest: Of the image or index.
        key: Signs.
        references: "HOST/REPO:TAG" each.

    Returns:
        What to write, or None when all is there.

    Raises:
        SignatureError: `existing` holds something else than signatures, or too many of them.
    """
    layers = _parse_layers(existing, digest)
    fresh: list[bytes] = []
    for reference in references:
        payload = make_payload(digest, reference)
        if any(_is_signed(layer, payload, key) for layer in layers):
            continue
        layer = Descriptor(
            media_type=SIMPLE_SIGNING,
            digest=Digest.of(payload),
            size_bytes=len(payload),
            annotations={SIGNATURE_ANNOTATION: base64.b64encode(key.sign(payload)).decode()},
        )
        layers.append(layer)
        fresh.append(payload)
    if not fresh:
        return None
    if len(layers) > CANDIDATES:
        raise SignatureError(
            f"{digest} would have {len(layers)} signatures, more than the {CANDIDATES} that verifiers look at",
            hint=f"delete the tag sha256-{digest.hex[:12]}….sig and sign again",
        )
    config = _config(layers)
    manifest = {
        "schemaVersion": 2,
        "mediaType": media.MANIFEST,
        "config": Descriptor(
            media_type=media.CONFIG, digest=Digest.of(config), size_bytes=len(config)
        ).to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    return LegacySignatures(manifest=canonical_json(manifest), config=config, payloads=tuple(fresh))


def _parse_layers(existing: bytes | None, digest: Digest) -> list[Descriptor]:
    if existing is None:
        return []
    try:
        document = parse_object(existing, what="the manifest", max_bytes=MANIFEST_BYTES)
        layers = [Descriptor.from_json(layer) for layer in objects(document.get("layers"))]
    except (VerificationError, ValueError) as error:
        raise _not_signatures(digest, str(error)) from error
    if any(layer.media_type != SIMPLE_SIGNING for layer in layers):
        raise _not_signatures(digest, "it has layers of another kind")
    return layers


def _not_signatures(digest: Digest, why: str) -> SignatureError:
    return SignatureError(
        f"the tag sha256-{digest.hex[:12]}….sig names something else than signatures: {why}",
        hint="find out who wrote it; delete the tag and sign again",
    )


def _is_signed(layer: Descriptor, payload: bytes, key: SigningKey) -> bool:
    """Tell whether `layer` is this key's signature over `payload`."""
    if layer.digest != Digest.of(payload):
        return False
    try:
        signature = parse_base64(field(dict(layer.annotations), SIGNATURE_ANNOTATION), what="the signature")
        verify_data(key.public, signature, payload)
    except VerificationError:
        return False
    return True


def _config(layers: list[Descriptor]) -> bytes:
    """Write the config: nothing runs it, but registries and daemons want the layers' digests in it.

    It follows from the layers alone, so what others wrote there is not read.
    """
    return canonical_json(
        {
            "architecture": "",
            "created": _NEVER,
            "history": [{"created": _NEVER} for _ in layers],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
            "config": {},
        }
    )

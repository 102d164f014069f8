"""Write the vectors that edgebuild itself makes: `python -m tests.vectors.signing.make_vectors`, then look at the diff."""

from pathlib import Path

from edgebuild.oci.descriptor import INDEX, Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.signing.bundle import make_bundle, make_referral, make_signature_statement
from edgebuild.signing.keys import load_signing_key
from edgebuild.signing.payload import add_signatures
from edgeverify.bundle import COSIGN_SIGN

VECTORS = Path(__file__).parent
PASSWORD = b"correct horse"
FOREIGN_PASSWORD = b"stranger"
REFERENCE = "registry.example.com/acme/llm:1.4"
EPOCH_S = 1_577_836_800
IMAGE_BYTES = 304


def image() -> Digest:
    """The image that every vector is about."""
    return Digest.parse((VECTORS / "image.txt").read_text().strip())


def make() -> dict[str, bytes]:
    """Give the vectors by file name."""
    key = load_signing_key(VECTORS / "TEST-ONLY-cosign.key", PASSWORD)
    legacy = add_signatures(None, image(), key, references=(REFERENCE,))
    assert legacy is not None
    bundle = make_bundle(make_signature_statement(image()), key)
    subject = Descriptor(media_type=INDEX, digest=image(), size_bytes=IMAGE_BYTES)
    referral = make_referral(bundle, subject=subject, predicate_type=COSIGN_SIGN, epoch_s=EPOCH_S)
    return {
        "edgebuild-payload.json": legacy.payloads[0],
        "edgebuild-legacy-config.json": legacy.config,
        "edgebuild-legacy-manifest.json": legacy.manifest,
        "edgebuild-bundle.json": referral.bundle,
        "edgebuild-bundle-manifest.json": referral.manifest,
    }


if __name__ == "__main__":
    for name, content in make().items():
        (VECTORS / name).write_bytes(content)

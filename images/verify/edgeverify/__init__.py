"""Verify that an image is signed by a key: cosign's two forms, offline, with `cryptography` alone.

Used by edgebuild, by the server in the image and by the device; it imports none of them. For example:

    key = load_public_key(Path("cosign.pub").read_bytes())
    for image in verify_layout(Path("image"), key):
        print(image.digest)

Everything that verifies raises `VerificationError` or returns what it verified; there are no boolean verdicts.
"""

from edgeverify.bundle import BUNDLE, COSIGN_SIGN, pae, verify_bundle
from edgeverify.errors import VerificationError
from edgeverify.image import Referrer, Signature, Source, verify_image
from edgeverify.keys import load_public_key
from edgeverify.layout import LayoutSource, open_layout, verify_layout
from edgeverify.legacy import SIMPLE_SIGNING, verify_legacy
from edgeverify.tree import TreeSource, Verified, verify_tree

__all__ = [
    "BUNDLE",
    "COSIGN_SIGN",
    "SIMPLE_SIGNING",
    "LayoutSource",
    "Referrer",
    "Signature",
    "Source",
    "TreeSource",
    "VerificationError",
    "Verified",
    "load_public_key",
    "open_layout",
    "pae",
    "verify_bundle",
    "verify_image",
    "verify_layout",
    "verify_legacy",
    "verify_tree",
]

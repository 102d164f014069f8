"""Command line: `python -m edgeverify LAYOUT --key PUB` verifies every image of an OCI layout, offline."""

import argparse
import sys
from pathlib import Path

from edgeverify.errors import VerificationError
from edgeverify.keys import PEM_BYTES, load_public_key
from edgeverify.layout import verify_layout

EXIT_REFUSED = 8  # as edgebuild's for signatures


def main(arguments: list[str]) -> int:
    """Run the command; the exit code is 0 when everything is verified, 8 when anything is not, 2 for bad usage."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeverify",
        description="Verify every image of an OCI layout: signatures of the index and of each platform's manifest, and the hash of every blob.",
    )
    parser.add_argument("layout", type=Path, help="folder with oci-layout, index.json and blobs/")
    parser.add_argument("--key", type=Path, required=True, help="public key in PEM form (cosign.pub)")
    options = parser.parse_args(arguments)
    try:
        with options.key.open("rb") as file:
            key = load_public_key(file.read(PEM_BYTES + 1))
        images = verify_layout(options.layout, key)
    except OSError as error:
        sys.stderr.write(f"refused: {options.key} cannot be read: {error.strerror}\n")
        return EXIT_REFUSED
    except VerificationError as error:
        sys.stderr.write(f"refused: {error.message}\n")
        sys.stderr.writelines(f"  {reason}\n" for reason in error.reasons)
        return EXIT_REFUSED
    for image in images:
        sys.stdout.write(
            f"verified {image.digest}: {len(image.signatures)} manifests signed, "
            f"{image.blob_count} blobs with {image.blob_bytes} bytes hashed\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A small index of two profiles, made by edgebuild's own writers, and its way into any sink."""

from edgebuild.oci.blob import Blob
from edgebuild.oci.descriptor import LAYER_TAR
from edgebuild.oci.digest import Digest
from edgebuild.oci.image import Image, RunConfig, make_image
from edgebuild.oci.index import Index, make_index
from edgebuild.oci.layer import Layer, Role
from edgebuild.oci.platform import LINUX_AMD64, LINUX_ARM64, Platform
from edgebuild.oci.reference import Reference
from edgebuild.oci.referrers import SignatureSink
from edgebuild.signing.keys import SigningKey
from edgebuild.signing.sign import sign_image

_RUN = RunConfig(
    user="10001:10001",
    environment=(("PATH", "/usr/bin"),),
    entrypoint=("/bin/true",),
    command=(),
    working_directory="/",
    exposed_ports=(8080,),
    health_command=("/bin/true",),
    health_interval_s=30,
    health_start_period_s=5,
    labels=(),
)


def small_index(text: str = "image") -> Index:
    """Make an index of the profiles pi4 and x86; another text makes another index. Its layers are no archives."""
    return make_index((_image(text, "pi4", LINUX_ARM64), _image(text, "x86", LINUX_AMD64)), annotations={})


def _image(text: str, profile: str, platform: Platform) -> Image:
    blob = Blob.of_bytes(f"{text} layer of {profile}".encode())
    digest = Digest.of(blob.read())
    layer = Layer(role=Role.MODEL, media_type=LAYER_TAR, digest=digest, diff_id=digest, blob=blob)
    return make_image(
        profile=profile, platform=platform, layers=(layer,), run=_RUN, annotations={}, epoch_s=0
    )


def publish(
    sink: SignatureSink,
    index: Index,
    *,
    tag: str,
    key: SigningKey | None = None,
    references: tuple[Reference, ...] = (),
) -> None:
    """Write an index in the order of a build: blobs, manifests, signatures when there is a key, tags."""
    for image in index.images:
        for digest, blob in image.blobs().items():
            sink.put_blob(blob, digest=digest, title="blob")
        sink.put_manifest(image.manifest, image.descriptor)
    sink.put_manifest(index.raw, index.descriptor)
    if key is not None:
        sign_image(sink, index.digest, key, references=references, epoch_s=0)
    sink.tag(index.descriptor, tag)
    for image in index.images:
        sink.tag(image.descriptor, f"{tag}-{image.profile}")

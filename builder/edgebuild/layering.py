"""The layers of an image, put where the image goes: the model's beside the software's, then the settings'.

The two have nothing in common, and neither is to wait: the model is copied, hashed or sent while software is looked up in
the store, or made.
"""

from dataclasses import dataclass
from pathlib import Path

from edgebuild.beside import Beside, side_by_side
from edgebuild.contents import BakedFile, make_contents
from edgebuild.engine.native import NativeEngine
from edgebuild.model.source import ModelFile
from edgebuild.oci.layer import Layer, Role
from edgebuild.oci.seals import known_blob_digest, remember_blob_digest
from edgebuild.oci.sink import Sink
from edgebuild.oci.tar import ModelTar, bytes_layer
from edgebuild.plan import BuildPlan, software_roles
from edgebuild.preparing import frame_model
from edgebuild.request import Context, ImageRequest
from edgebuild.stopwatch import Stopwatch

# Of a model in several. Two are hashed faster than most disks write, and more would have a disk with a head seek more.
_FILES_AT_ONCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PutLayers:
    """What was put.

    Attributes:
        layers: Bottom first, as the plan has them.
        files: The model's files, by the layers that bring them.
    """

    layers: tuple[Layer, ...]
    files: tuple[BakedFile, ...]


def put_layers(
    plan: BuildPlan,
    model: ModelFile,
    *,
    engine: NativeEngine,
    sink: Sink,
    request: ImageRequest,
    context: Context,
    watch: Stopwatch,
) -> PutLayers:
    """Make the layers of an image and put them into a sink.

    Args:
        plan: What goes in.
        model: The model as the image holds it.
        engine: Makes the software.
        sink: Where the layers go; after an error nothing more can be put into it.
        request: Where the model may be cut, and whether the sink is a layout.
        context: The store, and progress.
        watch: Told of each layer's seconds, by role; those of the model overlap with those of the software.

    Raises:
        EdgebuildError: A layer cannot be made or stored.
    """
    platform = plan.profile.oci_platform
    found: dict[Role, tuple[Layer, ...]] = {}

    def put(role: Role, layer: Layer) -> None:
        sink.put_blob(layer.blob, digest=layer.digest, title=f"{role} for {platform}")
        found[role] = (layer,)

    def put_model() -> tuple[tuple[ModelTar, Layer], ...]:
        with watch.step(Role.MODEL.value):
            # One layer for each file, so that a pull that breaks goes on with the file that it broke in.
            files = frame_model(model, shard_bytes=request.shard_bytes)

            def put_one(framed: ModelTar) -> Layer:
                return _put_model(framed, sink=sink, request=request, context=context)

            if len(files) == 1:
                return ((files[0], put_one(files[0])),)
            layers = side_by_side(files, put_one, at_once=_FILES_AT_ONCE, stop=sink.stop)
            return tuple(zip(files, layers, strict=True))

    with Beside(put_model, stop=sink.stop) as models:
        for role in software_roles(plan.profile):
            models.check()
            with watch.step(role.value):
                put(role, engine.layer(role, platform))
        pairs = models.result()
    found[Role.MODEL] = tuple(layer for _, layer in pairs)
    files = tuple(_baked(framed, layer) for framed, layer in pairs)
    with watch.step(Role.CONFIG.value):
        put(Role.CONFIG, bytes_layer(make_contents(plan, files), role=Role.CONFIG))
    return PutLayers(layers=tuple(layer for role in plan.layers for layer in found[role]), files=files)


def _put_model(framed: ModelTar, *, sink: Sink, request: ImageRequest, context: Context) -> Layer:
    """Store a layer of the model. One whose file has not changed since is not hashed again, nor sent to who has it."""
    # A layout looks for the seal itself, and takes the digest that it finds while copying if the seal is wrong.
    known = known_blob_digest(framed.blob, context.store) if request.output is None else None
    digest = sink.put_blob(framed.blob, digest=known, title=f"model {Path(framed.name).name}")
    if known is None:
        remember_blob_digest(framed.blob, context.store, digest)
    return framed.layer(digest)


def _baked(framed: ModelTar, layer: Layer) -> BakedFile:
    return BakedFile(
        path=f"/{framed.name}",
        size_bytes=framed.file_bytes,
        diff_id=layer.diff_id,
        before=framed.before,
        after=framed.after,
    )

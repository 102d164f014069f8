"""What people have without edgebuild: a Dockerfile, `docker buildx build` and `docker push`.

The image has the very content of ours, in the same order of layers, from a base that holds our root file system; so that
what is compared is the way, not what goes in. There are no RUN steps.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgebuild.oci.layer import Role
from edgebuild.oci.layout import read_layout
from edgebuild.unpacking import unpack
from tests.support.peers.docker import DockerDaemon, running_dockerd
from tests.support.peers.registry import Registry

_DOCKERFILE = """\
FROM {base}
COPY opt/edge/deps /opt/edge/deps
COPY opt/edge/engine /opt/edge/engine
COPY models /models
COPY opt/edge/server /opt/edge/server
COPY etc/edgebuild /etc/edgebuild
USER 10001:10001
ENV PYTHONPATH=/opt/edge/server:/opt/edge/engine:/opt/edge/deps
ENTRYPOINT ["/usr/bin/python3.13", "-P", "-m", "edgeserve"]
CMD ["serve"]
"""
_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A build context and the daemon that builds it.

    Attributes:
        daemon: Docker 28 with containerd's store.
        context: The folder; `models/model.gguf` and `opt/edge/server` are there to be changed.
    """

    daemon: DockerDaemon
    context: Path

    @property
    def model(self) -> Path:
        """The model's place in the context."""
        return self.context / "models/model.gguf"

    def change_server(self, word: str) -> None:
        """Change a comment of the server's code."""
        path = self.context / "opt/edge/server/edgeserve/__init__.py"
        path.write_text(path.read_text("utf-8") + f"# changed: {word}\n", "utf-8")

    def build(self, name: str) -> float:
        """Build and return the seconds that it took."""
        begin_s = time.monotonic()
        self.daemon.docker("buildx", "build", "--tag", name, self.context, timeout_s=_TIMEOUT_S)
        return time.monotonic() - begin_s

    def push(self, name: str) -> float:
        """Push and return the seconds that it took."""
        begin_s = time.monotonic()
        self.daemon.docker("push", name, timeout_s=_TIMEOUT_S)
        return time.monotonic() - begin_s


@contextmanager
def plain_way(
    folder: Path, *, layout: Path, profile: str, registry: Registry, model: Path | None = None
) -> Iterator[Plain]:
    """Start the daemon and lay out the context from one of our images.

    Args:
        folder: Where the context goes.
        layout: Layout that holds the image.
        profile: Its profile; of this machine's architecture.
        registry: Takes the base image.
        model: Copied into the context; None takes the image's own.
    """
    image = next(image for image in read_layout(layout).index().images if image.profile == profile)
    folder.mkdir()
    left_out = {Role.ROOTFS} if model is None else {Role.ROOTFS, Role.MODEL}
    unpack(tuple(layer for layer in image.layers if layer.role not in left_out), folder)
    if model is not None:
        (folder / "models").mkdir()
        shutil.copyfile(model, folder / "models/model.gguf")
    root = folder.with_name("rootfs.tar.gz")
    with root.open("wb") as file:
        for chunk in next(layer for layer in image.layers if layer.role is Role.ROOTFS).blob.chunks():
            file.write(chunk)
    with running_dockerd("dockerd28", containerd_store=True) as daemon:
        base = registry.reference("base", "1")
        daemon.docker("import", root, base)
        daemon.docker("push", base)
        (folder / "Dockerfile").write_text(_DOCKERFILE.format(base=base), "utf-8")
        yield Plain(daemon=daemon, context=folder)

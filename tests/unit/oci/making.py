"""Small trees, images and layouts, made with edgebuild's writers."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgebuild.oci import descriptor as media
from edgebuild.oci.digest import Digest
from edgebuild.oci.image import Image, RunConfig, make_image
from edgebuild.oci.index import Index, make_index
from edgebuild.oci.layer import Layer, Role
from edgebuild.oci.layout import LayoutSink, read_layout
from edgebuild.oci.platform import LINUX_AMD64, LINUX_ARM64, Platform
from edgebuild.oci.tar import bytes_layer, model_tar, tree_layer
from edgebuild.progress import SilentProgress, Task

PLATFORMS = {"pi4": LINUX_ARM64, "x86": LINUX_AMD64}
RUN = RunConfig(
    user="10001:10001",
    environment=(("PATH", "/bin"),),
    entrypoint=("/bin/busybox",),
    command=("echo", "hello"),
    working_directory="/",
    exposed_ports=(8080,),
    health_command=("/bin/busybox", "true"),
    health_interval_s=30,
    health_start_period_s=10,
    labels=(),
)


def write_tree(folder: Path, contents: Mapping[str, bytes | str | None]) -> Path:
    """Write files (bytes), symbolic links (str) and folders (None) by path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return folder


def server_layer(scratch: Path) -> Layer:
    tree = scratch / "server-tree"
    if not tree.exists():
        write_tree(
            tree, {"edgeserve/__init__.py": b"", "edgeserve/main.py": b"print()\n", "current": "edgeserve"}
        )
    return tree_layer(tree, role=Role.SERVER, prefix="opt/edge/server", destination=scratch / "server.tar.gz")


def image_of(profile: str, layers: tuple[Layer, ...], *, platform: Platform | None = None) -> Image:
    return make_image(
        profile=profile,
        platform=platform or PLATFORMS[profile],
        layers=layers,
        run=RUN,
        annotations={"org.opencontainers.image.title": profile},
        epoch_s=1_700_000_000,
    )


def fill(
    sink: LayoutSink,
    scratch: Path,
    *,
    model: Path,
    tag: str = "1",
    profiles: tuple[str, ...] = ("pi4", "x86"),
) -> Index:
    """Put a whole build into a sink: blobs, manifests, index, tags."""
    framed = model_tar(model, "demo.gguf")
    bottom = framed.layer(sink.put_blob(framed.blob, digest=None, title="model demo.gguf"))
    images = []
    for profile in profiles:
        config = bytes_layer({"/etc/edgebuild/runtime.json": profile.encode()}, role=Role.CONFIG)
        image = image_of(profile, (bottom, server_layer(scratch), config))
        for digest, blob in image.blobs().items():
            sink.put_blob(blob, digest=digest, title=digest.short)
        sink.put_manifest(image.manifest, image.descriptor)
        images.append(image)
    index = make_index(tuple(images), annotations={})
    sink.put_manifest(index.raw, index.descriptor)
    if tag:
        for image in images:
            sink.tag(image.descriptor, f"{tag}-{image.profile}")
        sink.tag(index.descriptor, tag)
    return index


def files_of(folder: Path) -> dict[str, bytes]:
    """Read everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class HookProgress:
    """Calls `on_advance(title, total so far)` whenever work advances, and counts tasks."""

    def __init__(self, on_advance: Callable[[str, int], None] | None = None) -> None:
        self.on_advance = on_advance
        self.titles: list[str] = []

    @contextmanager
    def task(self, title: str, *, total_bytes: int | None = None) -> Iterator[Task]:
        del total_bytes
        self.titles.append(title)
        yield _HookTask(title, self.on_advance)

    def note(self, text: str) -> None:
        """Say nothing."""


class _HookTask:
    def __init__(self, title: str, on_advance: Callable[[str, int], None] | None) -> None:
        self._title = title
        self._on_advance = on_advance
        self._total = 0

    def advance(self, count_bytes: int) -> None:
        self._total += count_bytes
        if self._on_advance is not None:
            self._on_advance(self._title, self._total)

    def resize(self, total_bytes: int) -> None:
        """Keep nothing of it."""

    def status(self, text: str) -> None:
        """Say nothing."""


class DictSeals:
    """Seals in memory, bound to what `stat` says of a file, as the store's are."""

    def __init__(self) -> None:
        self.known: dict[tuple[object, ...], Digest] = {}
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def known_digest(self, path: Path, tag: str) -> Digest | None:
        with self._lock:
            self.asked.append(path.name)
            return self.known.get(self._key(path, tag))

    def remember_digest(self, path: Path, tag: str, digest: Digest) -> None:
        with self._lock:
            self.known[self._key(path, tag)] = digest

    def _key(self, path: Path, tag: str) -> tuple[object, ...]:
        status = path.stat()
        return str(path), tag, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sink_of(path: Path, **settings: object) -> LayoutSink:
    return LayoutSink(path, **{"progress": SilentProgress(), **settings})  # type: ignore[arg-type]


def entries(path: Path) -> list[tuple[str, str]]:
    annotations = [entry.annotations for entry in read_layout(path).entries]
    return [(each.get(media.REF_NAME, ""), each.get("io.containerd.image.name", "")) for each in annotations]

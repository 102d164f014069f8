"""Models that lie in container registries: artifacts of Docker Model Runner, ModelPack and ollama, and plain files.

Media types: docker/model-runner pkg/distribution/types (vnd.docker.ai.*), modelpack/model-spec docs/spec.md
(vnd.cncf.model.*, before vnd.cnai.model.*), ollama server (vnd.ollama.image.*); files pushed by oras carry their
name in the annotation org.opencontainers.image.title.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgebuild.artifacts.arrival import Arrival, Expected, receive
from edgebuild.artifacts.files import size_so_far
from edgebuild.artifacts.side_by_side import fetch_side_by_side
from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.errors import ModelError, RegistryError
from edgebuild.gguf_shards import shard_names
from edgebuild.host import Host
from edgebuild.model.fetched import Fetched
from edgebuild.model.found import Found, RemoteFile
from edgebuild.model.reference import RegistryReference
from edgebuild.model.selection import choose_files
from edgebuild.model.unpacking import unpack
from edgebuild.model_spec import gguf_file_name, slug
from edgebuild.oci import descriptor as media
from edgebuild.oci.descriptor import Descriptor
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference
from edgebuild.pieces import Lanes
from edgebuild.plan import ModelSource
from edgebuild.progress import Progress, Task
from edgebuild.registry.client import Manifest, RegistryClient, open_client

_GGUF = frozenset(
    {
        "application/vnd.docker.ai.gguf.v3",
        "application/vnd.ollama.image.model",
        "application/vnd.cncf.model.weight.v1.gguf",
        "application/vnd.cncf.model.weight.gguf",
    }
)
_NAMES = ("org.cncf.model.filepath", "org.cnai.model.filepath", "org.opencontainers.image.title")
_LICENCES = frozenset({"application/vnd.docker.ai.license", "application/vnd.ollama.image.license"})
_PACKED = (".tar", ".tar+gzip")
_UNREADABLE = ("+zstd", "v3+gzip", "raw+gzip")
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A manifest that was read.

    Attributes:
        digest: Its own.
        config: Its configuration.
        layers: Its layers.
    """

    digest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]


@contextmanager
def finding_registry_model(
    reference: RegistryReference, *, wanted: tuple[str, ...], host: Host, store: Store, progress: Progress
) -> Iterator[Found]:
    """Find the GGUF model of an artifact, one layer or several that are its files, and keep the connection.

    Args:
        reference: The artifact.
        wanted: Types that the devices want, each once.
        host: Its environment has proxies, certificates and logins.
        store: Takes the files.
        progress: Told of the bytes.

    Raises:
        ModelError: The artifact holds no GGUF file, or no clear choice.
        RegistryError: It is not there, or the registry refused, failed or lied.
        StoreError: The disk is full.
    """
    named = reference.reference
    if named.digest is not None and (known := _recall(named.digest, store)) is not None:
        yield Found(place=known.source.reference, fetch=lambda _: known)
        return
    place = f"oci://{named}"
    with open_client(named, environment=host.environment, progress=progress) as client:
        artifact = _read_artifact(client, str(named.digest or named.tag), place=place)
        files = _gguf_files(artifact, default=named.repository.rpartition("/")[2])
        chosen = choose_files(
            files,
            wanted=wanted,
            place=place,
            hint="name an artifact that holds one model, by its tag or digest",
        )
        if not chosen:
            raise _no_gguf(artifact, place)
        model = _RegistryModel(
            client,
            artifact,
            tuple((name, files[name]) for name in chosen),
            is_only=len(files) == len(chosen),
            named=named,
            store=store,
            progress=progress,
        )
        yield model.found()


class _RegistryModel:
    """A model in a registry that is being talked to."""

    def __init__(
        self,
        client: RegistryClient,
        artifact: Artifact,
        chosen: tuple[tuple[str, Descriptor], ...],
        *,
        is_only: bool,
        named: Reference,
        store: Store,
        progress: Progress,
    ) -> None:
        """Take what was found; nothing of it is fetched yet.

        Args:
            client: The connection.
            artifact: The manifest.
            chosen: Names and layers of the model's files, in order.
            is_only: Whether it is the only model there, so that nothing was chosen.
            named: What the user wrote.
            store: Takes the files.
            progress: Told of the bytes.
        """
        self._client = client
        self._artifact = artifact
        self._chosen = chosen
        self._is_only = is_only
        self._named = named
        self._store = store
        self._progress = progress
        self._licence: str | None = None

    def found(self) -> Found:
        """Say how it is fetched; the beginning of a file that is inside another is not that of its layer."""
        is_packed = any(layer.media_type.endswith(_PACKED) for _, layer in self._chosen)
        remote = () if is_packed else tuple(self._remote(file, layer) for file, layer in self._chosen)
        return Found(
            place=self._reference,
            fetch=self._fetch,
            files=remote,
            licence=self._state_licence,
            reason="its files are packed in others" if is_packed else "",
        )

    @property
    def _reference(self) -> str:
        return f"oci://{self._named.with_digest(self._artifact.digest)}"

    def _state_licence(self) -> str:
        """Read what the artifact says of its licence, once; "" when it says nothing."""
        if self._licence is None:
            self._licence = _licence(self._client, self._artifact)
        return self._licence

    def _remote(self, file: str, layer: Descriptor) -> RemoteFile:
        def extend(into: Path, upto: int) -> int:
            chunks = self._client.stream_blob(
                layer.digest, size_bytes=layer.size_bytes, offset_bytes=size_so_far(into), upto_bytes=upto
            )
            with into.open("ab") as opened:
                for chunk in chunks:
                    opened.write(chunk)
            return layer.size_bytes

        return RemoteFile(name=_file_name(file), digest=layer.digest, extend=extend)

    def _fetch(self, begun: Mapping[Digest, Path]) -> Fetched:
        fetched = fetch_side_by_side(
            self._chosen,
            lambda chosen, lanes: self._fetch_file(*chosen, begun, lanes),
            stop=self._client.stop,
        )
        is_one = len(fetched) == 1
        source = ModelSource(
            kind="oci",
            reference=self._reference,
            revision=str(self._artifact.digest),
            file=fetched[0].name,
            sha256=fetched[0].sha256 if is_one else "",
            licence=self._state_licence(),
            files=() if is_one else tuple((file.name, file.sha256) for file in fetched),
        )
        # A choice among several models may be another one the next time.
        if self._is_only and all(file.sha256 for file in fetched):
            self._store.remember(_note_name(self._artifact.digest), canonical_json(asdict(source)))
        return Fetched(path=fetched[0].path, source=source, more=tuple(file.path for file in fetched[1:]))

    def _fetch_file(
        self, file: str, layer: Descriptor, begun: Mapping[Digest, Path], lanes: Lanes
    ) -> "_File":
        name = _file_name(file)
        if not layer.media_type.endswith(_PACKED):
            path = self._fetch_blob(layer, name, begun.get(layer.digest), lanes)
            return _File(path=path, name=name, sha256=layer.digest.hex)
        packed = self._fetch_blob(layer, f"{name}.tar", None, lanes)
        place = f"oci://{self._named}"
        path = unpack(packed, layer.digest, name, place=place, store=self._store, progress=self._progress)
        return _File(path=path, name=name, sha256="")

    def _fetch_blob(self, layer: Descriptor, name: str, begun: Path | None, lanes: Lanes) -> Path:
        client = self._client

        def fetch(arrival: Arrival, task: Task) -> None:
            del task
            if arrival.size_bytes > layer.size_bytes:
                arrival.restart()
            for chunk in client.stream_blob(
                layer.digest, size_bytes=layer.size_bytes, offset_bytes=arrival.size_bytes, lanes=lanes
            ):
                arrival.write(chunk)

        return receive(
            Expected(digest=layer.digest, file=name, size_bytes=layer.size_bytes, title=name, begun=begun),
            store=self._store,
            progress=self._progress,
            fetch=fetch,
            other=lambda found: client.other_blob(layer.digest, found),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A GGUF file that was fetched.

    Attributes:
        path: In the store.
        name: Its name.
        sha256: Its hash as the registry gave it; "" of one that was packed.
    """

    path: Path
    name: str
    sha256: str


def _file_name(file: str) -> str:
    return gguf_file_name(file.rpartition("/")[2])


def _note_name(digest: Digest) -> str:
    return f"oci-{digest.hex}.json"


def _recall(digest: Digest, store: Store) -> Fetched | None:
    """Return what a manifest that holds one model gave before, which never changes, if the store has it still."""
    note = store.recall(_note_name(digest))
    with suppress(ValueError, TypeError, AttributeError):
        document = json.loads(note or b"null")
        files = tuple((str(file), str(sha256)) for file, sha256 in document.pop("files", ()))
        source = ModelSource(**document, files=files)
        named = files or ((source.file, source.sha256),)
        paths = [store.find_download(Digest(sha256), file) for file, sha256 in named]
        found = [path for path in paths if path is not None]
        if len(found) == len(named):
            return Fetched(path=found[0], source=source, more=tuple(found[1:]))
    return None


def _read_artifact(client: RegistryClient, name: str, *, place: str) -> Artifact:
    manifest = client.manifest(name)
    document = _parse(manifest, place)
    if manifest.descriptor.media_type in {media.INDEX, media.DOCKER_INDEX}:
        entries = _descriptors(document.get("manifests"), place)
        models = [
            entry for entry in entries if entry.platform is None or entry.platform.architecture != "unknown"
        ]
        if len(models) != 1:
            raise ModelError(
                f"{place} is an index of {len(models)} manifests, not one model",
                hint="name the manifest of the model by its digest",
            )
        manifest = client.manifest(models[0].digest)
        document = _parse(manifest, place)
    (config,) = _descriptors([document.get("config")], place)
    return Artifact(
        digest=manifest.descriptor.digest, config=config, layers=_descriptors(document.get("layers"), place)
    )


def _parse(manifest: Manifest, place: str) -> Mapping[str, Any]:
    try:
        document = json.loads(manifest.raw)
    except (ValueError, RecursionError) as error:
        raise _broken(place) from error
    if not isinstance(document, dict):
        raise _broken(place)
    return document


def _descriptors(items: object, place: str) -> tuple[Descriptor, ...]:
    if not isinstance(items, list):
        raise _broken(place)
    try:
        return tuple(Descriptor.from_json(item) for item in items)
    except ValueError as error:
        raise _broken(place) from error


def _broken(place: str) -> RegistryError:
    return RegistryError(f"{place} is no manifest that can be read", hint="push the artifact anew")


def _gguf_files(artifact: Artifact, *, default: str) -> dict[str, Descriptor]:
    """Name the layers that are GGUF files, each once.

    Docker's tools name several without names by their order, as the files of one model (docker/model-runner,
    pkg/distribution/internal/bundle, unpackGGUFs).
    """
    found: dict[str, Descriptor] = {}
    nameless = []
    for layer in artifact.layers:
        name = _shown(next((layer.annotations[key] for key in _NAMES if key in layer.annotations), ""))
        is_gguf = name.lower().endswith(".gguf")
        if layer.media_type in _GGUF and not is_gguf:
            nameless.append(layer)
        elif is_gguf and (layer.media_type in _GGUF or not layer.media_type.endswith(_UNREADABLE)):
            found[f"{layer.digest.short}/{name}" if name in found else name] = layer
    stem = slug(default)
    names = shard_names(stem, len(nameless)) if len(nameless) > 1 else (f"{stem}.gguf",)
    return found | {str(name): layer for name, layer in zip(names, nameless, strict=False)}


def _no_gguf(artifact: Artifact, place: str) -> ModelError:
    kinds = ", ".join(dict.fromkeys(layer.media_type for layer in artifact.layers)) or "nothing"
    return ModelError(
        f"{place} holds no GGUF file but {kinds}",
        hint="give an artifact of Docker Model Runner, ModelPack or ollama that holds GGUF",
    )


def _licence(client: RegistryClient, artifact: Artifact) -> str:
    """Read the licence: SPDX names of a ModelPack configuration, else the first line of a licence's text."""
    if artifact.config.media_type.endswith("+json") and artifact.config.size_bytes <= _SMALL_BYTES:
        try:
            document = json.loads(client.read_blob(artifact.config, cap_bytes=_SMALL_BYTES))
            stated = document["descriptor"]["licenses"]
        except (ValueError, RecursionError, LookupError, TypeError):
            stated = []
        if isinstance(stated, list) and stated:
            return _shown(" AND ".join(str(item) for item in stated))
    for layer in artifact.layers:
        if layer.media_type in _LICENCES and layer.size_bytes <= _SMALL_BYTES:
            text = client.read_blob(layer, cap_bytes=_SMALL_BYTES).decode("utf-8", "replace")
            if line := next((line for line in text.splitlines() if line.strip()), ""):
                return _shown(line)
    return ""


def _shown(text: str) -> str:
    """Make a stranger's text fit for one line of a label."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:100]

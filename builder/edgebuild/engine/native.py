"""The native engine: recipes run on this host, without daemon, root or emulation."""

from dataclasses import dataclass
from pathlib import Path

from edgebuild.artifacts.layers import artifact_layer, find_layer
from edgebuild.artifacts.recipes import Artifact, artifact_key, build_artifact
from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.host import Host
from edgebuild.lock import Lock
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Layer, Role
from edgebuild.oci.platform import Platform
from edgebuild.plan import ARTIFACTS, PREFIXES
from edgebuild.progress import Progress

EMULATOR = "qemu"


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeEngine:
    """Runs recipes on this host and keeps what they make in the store.

    Attributes:
        lock: Inputs of every recipe, by hash.
        sources: Where recipes and their inputs come from.
        store: Keeps downloads, trees and layers.
        host: This machine.
        progress: Told how far it is.
    """

    lock: Lock
    sources: Sources
    store: Store
    host: Host
    progress: Progress

    @property
    def name(self) -> str:
        """Name for `--json` and messages."""
        return "native"

    def layer(self, role: Role, platform: Platform) -> Layer:
        """Return the layer of a role, built for `platform` or taken from the store.

        Raises:
            ToolError: A download or a program failed.
        """
        name, prefix = ARTIFACTS[role], PREFIXES[role]
        found = find_layer(self._key(name, platform), role=role, prefix=prefix, store=self.store)
        if found is not None:
            return found
        return artifact_layer(self.artifact(name, platform), role=role, prefix=prefix, store=self.store)

    def artifact(self, name: str, platform: Platform) -> Artifact:
        """Return an artifact by its name, built for `platform` or taken from the store."""
        return self._build(name, platform, variants=())

    def host_library(self, *, with_variants: bool) -> Artifact:
        """Return the engine's library for this machine, with which models are quantised.

        Args:
            with_variants: Whether to build what goes into images of this platform, because one is wanted anyway. Else
                no CPU variant is compiled: quantising uses ggml's own portable code.
        """
        here = Platform.of_machine(self.host.machine)
        name = ARTIFACTS[Role.ENGINE]
        if with_variants or self.store.find("artifact", self._key(name, here)) is not None:
            return self.artifact(name, here)
        return self._build(name, here, variants=("none",))

    def library_source(self) -> Digest:
        """Return the sha256 of the source archive that the engine is built from: what quantising depends on."""
        here = Platform.of_machine(self.host.machine)
        inputs = self.lock.inputs(ARTIFACTS[Role.ENGINE], here, machine=self.host.machine)
        return next(Digest(item.sha256) for item in inputs if item.file.endswith(".tar.gz"))

    def emulator(self, platform: Platform) -> Path:
        """Return a static qemu-user that runs programs of `platform` on this machine."""
        return (
            self.artifact(EMULATOR, Platform.of_machine(self.host.machine)).tree / f"qemu-{platform.machine}"
        )

    def _key(self, name: str, platform: Platform) -> Digest:
        return artifact_key(name, platform=platform, lock=self.lock, host=self.host, sources=self.sources)

    def _build(self, name: str, platform: Platform, *, variants: tuple[str, ...]) -> Artifact:
        return build_artifact(
            name,
            platform=platform,
            lock=self.lock,
            host=self.host,
            store=self.store,
            progress=self.progress,
            sources=self.sources,
            variants=variants,
        )

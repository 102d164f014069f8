"""The native engine: recipes run on this host, without daemon, root or emulation."""

from dataclasses import dataclass
from pathlib import Path

from edgebuild.artifacts.layers import artifact_layer
from edgebuild.artifacts.recipe_file import load_recipe
from edgebuild.artifacts.recipes import Artifact, build_artifact, is_built
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
        artifact = self.artifact(ARTIFACTS[role], platform)
        return artifact_layer(artifact, role=role, prefix=PREFIXES[role], store=self.store)

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
        recipe = load_recipe(self.sources.images, name)
        if with_variants or is_built(recipe, platform=here, lock=self.lock, host=self.host, store=self.store):
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

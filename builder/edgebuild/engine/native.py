"""The native engine: recipes run on this host, without daemon, root or emulation."""

from dataclasses import dataclass
from pathlib import Path

from edgebuild.artifacts.layers import artifact_layer
from edgebuild.artifacts.recipes import Artifact, build_artifact
from edgebuild.artifacts.store import Store
from edgebuild.host import Host
from edgebuild.lock import Lock
from edgebuild.oci.layer import Layer, Role
from edgebuild.oci.platform import Platform
from edgebuild.plan import ARTIFACTS, PREFIXES
from edgebuild.profile import CPU_VARIANTS
from edgebuild.progress import Progress

EMULATOR = "qemu"


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeEngine:
    """Runs recipes on this host and keeps what they make in the store.

    Attributes:
        lock: Inputs of every recipe, by hash.
        store: Keeps downloads, trees and layers.
        host: This machine.
        progress: Told how far it is.
    """

    lock: Lock
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
        return build_artifact(
            name, platform=platform, lock=self.lock, host=self.host, store=self.store, progress=self.progress
        )

    def host_library(self) -> Artifact:
        """Return the engine's library for this machine, with which models are quantised.

        No CPU variant but the plainest is compiled: quantising uses ggml's own portable code.
        """
        platform = Platform.of_machine(self.host.machine)
        return build_artifact(
            "llama-cpp",
            platform=platform,
            lock=self.lock,
            host=self.host,
            store=self.store,
            progress=self.progress,
            variants=(CPU_VARIANTS[platform.architecture][0],),
        )

    def emulator(self, platform: Platform) -> Path:
        """Return a static qemu-user that runs programs of `platform` on this machine."""
        return (
            self.artifact(EMULATOR, Platform.of_machine(self.host.machine)).tree / f"qemu-{platform.machine}"
        )

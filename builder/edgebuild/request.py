"""What a build is asked for, what it works with, and what comes of it. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.artifacts.store import Store
from edgebuild.choice import Selection, Version, make_selection, make_versions
from edgebuild.gates import QualityGates
from edgebuild.host import Host
from edgebuild.model.evaluation.inputs import EvaluationTasks, EvaluationText
from edgebuild.model.importance import ImportanceMatrix
from edgebuild.model.source import FoundModel, ModelFile
from edgebuild.oci.image import Image
from edgebuild.oci.index import Index
from edgebuild.oci.reference import Reference
from edgebuild.plan import BuildPlan
from edgebuild.profile import DeviceProfile
from edgebuild.progress import Progress

if TYPE_CHECKING:
    from edgebuild.signing.keys import SigningKey
    from edgebuild.smoke import SmokeResult


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOptions:
    """How packages are chosen.

    Attributes:
        path: The lock file.
        locked: Refuse anything that it does not hold.
        update: Resolve anew, whatever it holds.
        mirrors: Debian mirrors given by the user; empty takes those of the host's apt.
    """

    path: Path
    locked: bool
    update: bool
    mirrors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """How models are measured, and how good they must be.

    Attributes:
        is_wanted: Whether they are measured where no gate asks for it.
        text: The user's text; None takes one that ships with edgebuild.
        tasks: The user's tasks; None takes the model's own, if it has any.
        most_tokens: Of a longer text only so many count.
        gates: Those of the project; profiles have their own.
    """

    is_wanted: bool
    text: EvaluationText | None
    tasks: EvaluationTasks | None
    most_tokens: int
    gates: QualityGates


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceRequest:
    """By which importance matrix models are quantised.

    Attributes:
        matrix: The user's; None computes one.
        text: Text that it is computed from; None takes one that ships with edgebuild.
    """

    matrix: ImportanceMatrix | None
    text: EvaluationText | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """What `edgebuild image` was asked for.

    Attributes:
        profiles: Devices; at least one, no two of one name.
        model: The model, of which maybe the header alone is here.
        quantization: Type asked for, "auto", or None for each profile's own.
        shard_bytes: A model in one file that is larger is cut into shards of this size, a layer each; 0 cuts none.
        output: Folder of the layout, or None to write to the registry only.
        references: What the index is called: tags of one repository; empty when it has no name.
        push: Whether it goes to the registry that `references` name.
        lock: How packages are chosen.
        is_tested: Whether every image is started and asked.
        licence_required: Whether a model that states no licence is refused.
        evaluation: How models are measured, and how good they must be.
        key: Signs, or None.
        key_name: What the result calls the key: its file's name.
        engine: "auto" or "native".
        importance: By which importance matrix it is quantised; None by none.
    """

    profiles: tuple[DeviceProfile, ...]
    model: FoundModel
    quantization: str | None
    shard_bytes: int
    output: Path | None
    references: tuple[Reference, ...]
    push: bool
    lock: LockOptions
    is_tested: bool
    licence_required: bool
    evaluation: EvaluationRequest
    key: SigningKey | None
    key_name: str
    engine: str
    importance: ImportanceRequest | None = None

    def versions(self) -> Mapping[str, Version]:
        """Describe the model in every type that one of the devices may get; see `make_versions`."""
        return make_versions(
            self.model.spec,
            self.profiles,
            override=self.quantization,
            has_matrix=self.importance is not None,
        )

    def selection(self, profile: DeviceProfile, versions: Mapping[str, Version]) -> Selection:
        """Decide what the image for one of the devices holds; see `make_selection`."""
        return make_selection(
            self.model.spec,
            profile,
            versions=versions,
            override=self.quantization,
            has_matrix=self.importance is not None,
        )

    @property
    def reference(self) -> Reference | None:
        """The first name, which says where the index goes; None without one."""
        return self.references[0] if self.references else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """One image of the result.

    Attributes:
        image: The image.
        plan: What it was made from.
        engine: Engine that ran.
        smoke: What the smoke test saw, or None when it was left out.
        seconds: Seconds by step; a step that several images share counts for the first.
    """

    image: Image
    plan: BuildPlan
    engine: str
    smoke: SmokeResult | None
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What was built.

    Attributes:
        index: The index.
        images: Its images, in its order.
        model: The model as it was given.
    """

    index: Index
    images: tuple[BuiltImage, ...]
    model: ModelFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every step works with: this machine, the store, and where progress goes."""

    host: Host
    store: Store
    progress: Progress

"""Project files: what to build in a folder, so that nobody has to type it. A file is checked whole, as profiles are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from edgebuild.documents import Kind, Section, check_document, load_yaml
from edgebuild.errors import UsageError
from edgebuild.gates import QualityGates
from edgebuild.model.reference import LocalReference, parse_model_reference
from edgebuild.oci.reference import Reference
from edgebuild.quantities import ShardSize

PROJECT_FILE = "edgebuild.yaml"
_KIND = Kind(name="project file", beginning="`schema_version: 1`, `model: …` and `profiles: […]`")


def _checked(read: Callable[[str], object]) -> Callable[[str], str]:
    """Make a validator of a function that refuses with a usage error."""

    def check(text: str) -> str:
        try:
            read(text)
        except UsageError as error:
            raise ValueError(f"{error.message}; {error.hint}" if error.hint else error.message) from error
        return text

    return check


def _read_repository(text: str) -> None:
    if (reference := Reference.parse(text)).tag or reference.digest is not None:
        raise UsageError(f"{text!r} is more than a repository", hint="write the tags under `tags`")


def _read_tag(text: str) -> None:
    Reference(registry="localhost", repository="a").with_tag(text)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _each_once(texts: tuple[str, ...]) -> tuple[str, ...]:
    if twice := [text for number, text in enumerate(texts) if text in texts[:number]]:
        raise ValueError(f"{twice[0]!r} stands there twice")
    return texts


_TEXTS = {"type": "array", "items": {"type": "string"}}
Text = Annotated[str, Field(min_length=1)]
Profiles = Annotated[
    tuple[Text, ...],
    BeforeValidator(_as_tuple),
    AfterValidator(_each_once),
    Field(min_length=1),
    WithJsonSchema({**_TEXTS, "minItems": 1}),
]
Tags = Annotated[
    tuple[Annotated[str, AfterValidator(_checked(_read_tag))], ...],
    BeforeValidator(_as_tuple),
    AfterValidator(_each_once),
    WithJsonSchema(_TEXTS),
]


class Gates(QualityGates):
    """What stops a build."""

    licence_required: bool = Field(
        default=False, description="Refuse a model whose licence neither its header nor its source states"
    )


class Project(Section):
    """What to build."""

    schema_version: Literal[1] = Field(description="Version of this format")
    model: Annotated[Text, AfterValidator(_checked(parse_model_reference))] = Field(
        description="Model: a path beside this file, hf://ORG/REPO[@REVISION][/FILE], https://…#sha256=…, oci://REGISTRY/REPO, or demo",
        examples=["hf://bartowski/SmolLM2-135M-Instruct-GGUF"],
    )
    profiles: Profiles = Field(
        description="Device profiles: built-in names or paths beside this file",
        examples=[["pi4", "./shelf.yaml"]],
    )
    registry: Annotated[str, AfterValidator(_checked(_read_repository))] | None = Field(
        default=None,
        description="Registry and repository of the image, without a tag",
        examples=["registry.example.com/acme/llm"],
    )
    tags: Tags = Field(
        default=(),
        description="Names of the image there; each profile's is TAG-<profile>",
        examples=[["1.0", "latest"]],
    )
    key: Text | None = Field(default=None, description="Private key that signs: a path beside this file")
    shard_size: ShardSize | None = Field(
        default=None,
        description="A model in one file that is larger is cut into shards of this size, each a layer of its own; none: never",
    )
    gates: Gates = Field(default=Gates(), description="What stops a build")

    @field_validator("tags")
    @classmethod
    def _name_something(cls, tags: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # A registry that is no good is not in `data`, and is told by itself.
        if tags and info.data.get("registry", "") is None:
            raise ValueError("tags name nothing without `registry`")
        return tags


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProject:
    """A project file and where it lies: what it names by a path is beside it.

    Attributes:
        path: Absolute path of the file.
        project: What it says.
    """

    path: Path
    project: Project

    @property
    def folder(self) -> Path:
        """What the file's paths are relative to."""
        return self.path.parent

    @property
    def model(self) -> str:
        """The model, a path made absolute."""
        match parse_model_reference(self.project.model):
            case LocalReference(path=path) if path:
                return str(self.folder / Path(path).expanduser())
            case _:
                return self.project.model

    @property
    def references(self) -> tuple[Reference, ...]:
        """Names of the image; with a registry and no tags, "latest"."""
        if self.project.registry is None:
            return ()
        repository = Reference.parse(self.project.registry)
        return tuple(repository.with_tag(tag) for tag in self.project.tags or ("latest",))

    @property
    def key(self) -> str | None:
        """Path of the private key, made absolute."""
        return str(self.folder / Path(self.project.key).expanduser()) if self.project.key else None


def load_project(path: Path) -> LoadedProject:
    """Load a project file.

    Args:
        path: Absolute path.

    Raises:
        ProfileError: It cannot be read, is not YAML, or breaks a rule; all faults at once.
    """
    project = check_document(
        Project,
        load_yaml(path, kind=_KIND),
        kind=_KIND,
        hint="`edgebuild init --schema` prints what a project file may hold",
    )
    return LoadedProject(path=path, project=project)


def project_schema() -> dict[str, Any]:
    """Give the JSON Schema of a project file, for editors."""
    schema = Project.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "edgebuild project"}

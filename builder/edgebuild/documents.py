"""YAML documents that people write, with the line of every value, so that a fault can be shown where it stands."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from edgebuild.errors import ProfileError

_MAX_FILE_BYTES = 1 << 16
_MAX_DEPTH = 16

KeyPath = tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of document, for messages.

    Attributes:
        name: E.g. "profile".
        beginning: What one begins with.
    """

    name: str
    beginning: str


class Section(BaseModel):
    """A part of a document that people write: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Document = TypeVar("Document", bound=Section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A document and where each of its values stands.

    Attributes:
        value: The document: a mapping.
        places: "file:line" by path of keys and positions.
        file: The file it came from, for faults that have no line.
    """

    value: dict[str, Any]
    places: dict[KeyPath, str]
    file: Path

    def place(self, path: KeyPath) -> str:
        """Name the line of the value at `path`, or of the nearest one around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return str(self.file)


def load_yaml(path: Path, *, kind: Kind) -> Located:
    """Read a YAML mapping. Aliases, duplicate keys, tags and deep nesting are refused.

    Raises:
        ProfileError: The file cannot be read, is not YAML or not such a mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ProfileError(
            f"{path}: cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error
    if len(raw) > _MAX_FILE_BYTES:
        raise ProfileError(
            f"{path}: larger than {_MAX_FILE_BYTES // 1024} KiB", hint=f"this is no {kind.name}"
        )
    try:
        text = raw.decode("utf-8")
        node = yaml.compose(text, Loader=_Loader)
    except _AliasError as error:
        raise ProfileError(
            f"{_place(path, error.mark)}: aliases are not supported", hint="write the value out"
        ) from None
    except UnicodeDecodeError as error:
        raise ProfileError(
            f"{path}: byte {error.start} is not UTF-8", hint="save the file as UTF-8"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "cannot be read"
        raise ProfileError(
            f"{_place(path, mark)}: not YAML: {problem}",
            hint="check indentation, colons and quotes on that line",
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ProfileError(
            f"{path}: not YAML: {str(error).splitlines()[0]}", hint="the file must be plain text"
        ) from error
    if not isinstance(node, yaml.MappingNode):
        raise ProfileError(f"{path}:1: not a mapping of keys to values", hint=f"begin with {kind.beginning}")
    reader = _Reader(path, kind)
    value = reader.mapping(node, ())
    return Located(value=value, places=reader.places, file=path)


def overlay(lower: Located, upper: Located) -> Located:
    """Lay `upper` over `lower`: mappings are merged key by key, everything else is replaced."""
    return Located(
        value=_merge(lower.value, upper.value), places={**lower.places, **upper.places}, file=upper.file
    )


def check_document(model: type[Document], located: Located, *, kind: Kind, hint: str) -> Document:
    """Check a document whole.

    Args:
        model: What it must be.
        located: The document.
        kind: What it is called.
        hint: Where to see what it may hold.

    Raises:
        ProfileError: It breaks a rule; all faults at once, each with file, line and path.
    """
    try:
        return model.model_validate(located.value)
    except ValidationError as error:
        faults = tuple(_faults(error, model, located))
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ProfileError(f"{located.file}: {count} in the {kind.name}", faults=faults, hint=hint) from error


def _faults(error: ValidationError, model: type[BaseModel], located: Located) -> Iterator[str]:
    for fault in error.errors():
        path = tuple(
            part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("function-"))
        )
        text = ".".join(str(part) for part in path)
        if fault["type"] == "extra_forbidden":
            known = _known_keys(model, path[:-1])
            close = difflib.get_close_matches(str(path[-1]), known, n=1)
            message = "unknown key" + (
                f"; did you mean {close[0]!r}?" if close else f"; known here are {', '.join(known)}"
            )
        elif fault["type"] == "missing":
            message = "is required"
        else:
            message = fault["msg"].removeprefix("Value error, ")
        yield f"{located.place(path)}: {text}: {message}" if text else f"{located.place(path)}: {message}"


def _known_keys(model: type[BaseModel], path: KeyPath) -> tuple[str, ...]:
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        candidates = [
            item
            for item in (annotation, *getattr(annotation, "__args__", ()))
            if isinstance(item, type) and issubclass(item, BaseModel)
        ]
        if not candidates:
            return ()
        model = candidates[0]
    return tuple(model.model_fields)


def _merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _place(path: Path, mark: Any) -> str:  # yaml has two kinds of Mark, one of them C
    return str(path) if mark is None else f"{path}:{mark.line + 1}"


class _AliasError(Exception):
    def __init__(self, mark: Any) -> None:
        super().__init__()
        self.mark = mark


class _Loader(yaml.SafeLoader):
    """Stops at the first alias, before anything grows by it."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Make the next node."""
        if self.check_event(yaml.AliasEvent):
            raise _AliasError(self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


class _Reader:
    """Turns nodes into plain values and keeps their lines."""

    def __init__(self, path: Path, kind: Kind) -> None:
        self._path = path
        self._kind = kind
        self._scalars = yaml.constructor.SafeConstructor()
        self.places: dict[KeyPath, str] = {}

    def mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in document:
                raise ProfileError(
                    f"{_place(self._path, key_node.start_mark)}: key {key!r} stands there twice",
                    hint="keep one of them",
                )
            self.places[(*at, key)] = _place(self._path, key_node.start_mark)
            document[key] = self._value(value_node, (*at, key))
        return document

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:merge":
            raise ProfileError(
                f"{_place(self._path, node.start_mark)}: a key is not plain text", hint="write keys as words"
            )
        return str(node.value)

    def _value(self, node: yaml.Node, at: KeyPath) -> Any:
        if len(at) > _MAX_DEPTH:
            raise ProfileError(
                f"{_place(self._path, node.start_mark)}: nested more than {_MAX_DEPTH} deep",
                hint=f"this is no {self._kind.name}",
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for position, item in enumerate(node.value):
                self.places[(*at, position)] = _place(self._path, item.start_mark)
                items.append(self._value(item, (*at, position)))
            return items
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise ProfileError(
                f"{_place(self._path, node.start_mark)}: {node.value!r} cannot be read as a value",
                hint="quote it",
            ) from error

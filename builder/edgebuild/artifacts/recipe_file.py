"""recipe.toml: what a recipe declares of itself. People write it, so it is checked whole."""

import hashlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgebuild.artifacts.requirements import PinnedRequirement, parse_requirements
from edgebuild.errors import ToolError
from edgebuild.lock import LockedInput

_LIBRARY = "lib"
_NOT_BUILT_FROM = frozenset({".toml", ".txt", ".in", ".md"})
# What may be a module that is imported at the top. A word too many, in a line that only looks like an import, is harmless.
_IMPORT = re.compile(r"^(?:from (\w+)|import (.+))", re.MULTILINE)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactSection(_Document):
    """What is built.

    Attributes:
        description: One line for people.
        target: "host" for tools of the build itself, "target" for what goes into images. In the file: `for`.
        needs: Tools: "toolchain" to compile bytecode, "compiler" to compile C and C++.
        sources: Folders below `images/` that are part of the recipe, besides its own.
    """

    description: str
    target: Literal["host", "target"] = Field(alias="for")
    needs: tuple[Literal["compiler", "toolchain"], ...] = ()
    sources: tuple[str, ...] = ()


class DebianSection(_Document):
    """Packages whose current versions are resolved into the lock.

    Attributes:
        suite: Debian's code name, e.g. "trixie".
        packages: What is asked for; dependencies follow.
        leave_out: Dependencies that are not wanted.
    """

    suite: str = Field(pattern=r"^[a-z]+$")
    packages: tuple[str, ...] = Field(min_length=1)
    leave_out: tuple[str, ...] = ()


class PypiPin(_Document):
    """One file from the Python package index, by hash.

    Attributes:
        project: Its project.
        version: Its version.
        file: Its name.
        sha256: 64 hexadecimal digits.
        size_bytes: Its length.
        host: "x86_64" or "aarch64" when only such hosts need it.
    """

    project: str
    version: str
    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(gt=0)
    host: Literal["", "x86_64", "aarch64"] = ""


class RecipeFile(_Document):
    """A whole recipe.toml.

    Attributes:
        artifact: What is built.
        debian: Debian packages, if any.
        pypi: Files pinned one by one.
        requirements: A file of requirements with hashes beside recipe.toml; the wheels for the target are chosen from it.
    """

    artifact: ArtifactSection
    debian: DebianSection | None = None
    pypi: tuple[PypiPin, ...] = ()
    requirements: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe on disk.

    Attributes:
        name: Name of the artifact and of the folder.
        images: The folder `images/` that it lies in.
        file: What it declares.
    """

    name: str
    images: Path
    file: RecipeFile

    @property
    def folder(self) -> Path:
        """The recipe's own folder."""
        return self.images / self.name

    @property
    def script(self) -> Path:
        """The program that builds."""
        return self.folder / "recipe.py"

    def requirements(self) -> tuple[PinnedRequirement, ...]:
        """Read the file of requirements that recipe.toml names, if it does.

        Raises:
            ToolError: A line of it pins no version with hashes.
        """
        if not self.file.requirements:
            return ()
        return parse_requirements(self.folder / self.file.requirements)

    def pinned_inputs(self) -> Iterator[LockedInput]:
        """Yield the files that recipe.toml pins one by one, as a lock holds them."""
        for pin in self.file.pypi:
            yield LockedInput(
                kind="pypi",
                name=pin.project,
                version=pin.version,
                file=pin.file,
                host=pin.host,
                sha256=pin.sha256,
                size_bytes=pin.size_bytes,
            )

    @cached_property
    def files(self) -> tuple[tuple[str, str], ...]:
        """Every file that the recipe consists of, relative to `images/`, with its sha256, sorted; read once.

        Raises:
            ToolError: One cannot be read.
        """
        # Of its own folder only what lies there directly: an image's sources name their folders. recipe.toml and the
        # requirements speak of inputs, which are part of the key themselves.
        own = [path for path in self.folder.glob("*") if path.suffix not in _NOT_BUILT_FROM]
        # Of the library only what it imports: else every change there would have llama.cpp compiled again.
        shared = self._imported(self.script, ())
        named = [path for name in self.file.artifact.sources for path in (self.images / name).rglob("*")]
        kept = {path for path in (*own, *shared, *named) if path.is_file() and is_source(path)}
        try:
            return tuple(
                sorted(
                    (path.relative_to(self.images).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
                    for path in kept
                )
            )
        except OSError as error:
            raise ToolError(
                f"recipe {self.name}: {error.filename} cannot be read: {error.strerror}"
            ) from error

    def _imported(self, script: Path, known: tuple[Path, ...]) -> tuple[Path, ...]:
        """List the modules of the library that a program imports at its top, and those that they import."""
        try:
            found = _IMPORT.findall(script.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ToolError(f"recipe {self.name}: {script} cannot be read: {error}") from error
        for name in sorted({word for line in found for word in re.findall(r"\w+", " ".join(line))}):
            path = self.images / _LIBRARY / f"{name}.py"
            if path.is_file() and path not in known:
                known = self._imported(path, (*known, path))
        return known


def is_source(path: Path) -> bool:
    """Say whether a file belongs to sources: no bytecode, no editor's leftovers."""
    return "__pycache__" not in path.parts and not re.search(r"(\.pyc|~|\.swp|\.orig)$", path.name)


def load_recipe(images: Path, name: str) -> Recipe:
    """Read a recipe's declaration.

    Raises:
        ToolError: There is none of this name, or its file is broken.
    """
    path = images / name / "recipe.toml"
    try:
        document = tomllib.loads(path.read_text("utf-8"))
        return Recipe(name=name, images=images, file=RecipeFile.model_validate(document))
    except FileNotFoundError as error:
        raise ToolError(
            f"no recipe builds {name!r}: {path} is not there",
            hint="this is a broken installation of edgebuild",
        ) from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ToolError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ToolError(
            f"{path}: {place}: {fault['msg']}", hint="compare it with the recipes beside it"
        ) from error


def recipe_names(images: Path) -> tuple[str, ...]:
    """List the names of all recipes, sorted."""
    return tuple(sorted(path.parent.name for path in images.glob("*/recipe.toml")))

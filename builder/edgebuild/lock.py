"""The lock: every file from outside that images are made of, by hash.

A lock covers all recipes for both platforms and both kinds of host, so that one file in a project serves every profile
and every machine that builds it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgebuild.canonical import canonical_json
from edgebuild.errors import LockError
from edgebuild.oci.platform import LINUX_AMD64, LINUX_ARM64, Platform

LOCK_SCHEMA_VERSION = 1
# What a lock covers, whatever is built.
PLATFORMS = (LINUX_AMD64, LINUX_ARM64)
_MAX_FILE_BYTES = 4 << 20
_UPDATE_HINT = "make it anew with --update-lock"

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+~%-]*$", max_length=255)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LockedInput(_Document):
    """One file that a recipe reads.

    Attributes:
        kind: "deb" for a Debian package, "pypi" for a wheel or source archive.
        name: Package or project.
        version: Its version.
        file: Name under which the recipe sees it.
        archive: Of a package: "main" or "security", the archive it comes from; "" else.
        path: Of a package: its path in the archive; "" else.
        host: "x86_64" or "aarch64" when the recipe needs it only on such hosts; "" else.
        sha256: 64 hexadecimal digits.
        size_bytes: Its length; 0 when the index does not tell.
    """

    kind: Literal["deb", "pypi"]
    name: str
    version: str
    file: FileName
    archive: Literal["", "main", "security"] = ""
    path: str = Field(default="", pattern=r"^$|^[A-Za-z0-9][A-Za-z0-9._+~%/-]*$")
    host: Literal["", "x86_64", "aarch64"] = ""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class LockedArtifact(_Document):
    """The inputs of one recipe for one platform.

    Attributes:
        artifact: Name of the recipe.
        platform: "linux/amd64" or "linux/arm64".
        inputs: Sorted by file name.
    """

    artifact: str
    platform: Literal["linux/amd64", "linux/arm64"]
    inputs: tuple[LockedInput, ...] = Field(strict=False)


class Lock(_Document):
    """A whole lock.

    Attributes:
        schema_version: Always 1.
        epoch_s: Date of the newest package archive, in seconds since 1970; becomes the images' `created`.
        artifacts: Sorted by name and platform.
    """

    schema_version: Literal[1] = 1
    epoch_s: int = Field(ge=0, lt=2**35)
    artifacts: tuple[LockedArtifact, ...] = Field(strict=False)

    def inputs(self, artifact: str, platform: Platform, *, machine: str) -> tuple[LockedInput, ...]:
        """Return what a recipe reads when it runs on a host with this processor.

        Args:
            artifact: Name of the recipe.
            platform: What it builds for.
            machine: The host's processor: "x86_64" or "aarch64".

        Raises:
            LockError: The lock does not know the recipe.
        """
        for entry in self.artifacts:
            if entry.artifact == artifact and entry.platform == str(platform):
                return tuple(item for item in entry.inputs if item.host in {"", machine})
        raise LockError(f"the lock has no {artifact} for {platform}", hint=_UPDATE_HINT)

    def version_of(self, package: str) -> str:
        """Return the version of a package anywhere in the lock.

        Raises:
            LockError: It is in none.
        """
        for entry in self.artifacts:
            for item in entry.inputs:
                if item.name == package:
                    return item.version
        raise LockError(f"the lock has no {package}", hint=_UPDATE_HINT)


def load_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        LockError: It is not there, not readable or not a lock; all faults at once.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise LockError(
            f"{path}: no such lock file", hint="run without --locked once, and keep the file that it writes"
        ) from error
    except OSError as error:
        raise LockError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise LockError(f"{path}: larger than {_MAX_FILE_BYTES >> 20} MiB", hint="this is not a lock file")
    try:
        return Lock.model_validate_json(raw)
    except ValidationError as error:
        faults = tuple(
            f"{path}: {'.'.join(str(part) for part in fault['loc']) or 'document'}: {fault['msg']}"
            for fault in error.errors()
        )
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise LockError(f"{faults[0]}{more}", hint=_UPDATE_HINT, faults=faults) from error


def render_lock(lock: Lock) -> bytes:
    """Write a lock as JSON with one input a line, so that changes of versions read well in a diff."""
    head = f'{{\n  "schema_version": {LOCK_SCHEMA_VERSION},\n  "epoch_s": {lock.epoch_s},\n  "artifacts": [\n'
    return (head + ",\n".join(_artifact_lines(lock)) + "\n  ]\n}\n").encode()


def _artifact_lines(lock: Lock) -> Iterator[str]:
    for entry in lock.artifacts:
        inputs = ",\n".join(f"      {_one_line(item)}" for item in entry.inputs)
        body = f"[\n{inputs}\n    ]" if inputs else "[]"
        yield f'    {{"artifact": "{entry.artifact}", "platform": "{entry.platform}", "inputs": {body}}}'


def _one_line(item: LockedInput) -> str:
    return canonical_json(item.model_dump(exclude_defaults=True)).decode()

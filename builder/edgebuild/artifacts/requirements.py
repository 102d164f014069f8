"""Requirements files whose every line pins one version with hashes."""

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from edgebuild.errors import ToolError


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedRequirement:
    """One line of a requirements file.

    Attributes:
        project: Normalised name.
        version: The only version allowed.
        hashes: sha256 of the files allowed.
    """

    project: str
    version: str
    hashes: frozenset[str]


def parse_requirements(path: Path) -> tuple[PinnedRequirement, ...]:
    """Read a requirements file in which every line pins one version with hashes.

    Raises:
        ToolError: A line does not.
    """
    text = re.sub(r"\\\n", " ", path.read_text("utf-8"))
    found = []
    for line in text.splitlines():
        content = re.sub(r"(^|\s)#.*", "", line).strip()
        if not content:
            continue
        hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", content))
        try:
            requirement = Requirement(content.partition(" --hash")[0].strip())
        except InvalidRequirement as error:
            raise ToolError(f"{path}: {content[:60]!r} is no requirement: {error}") from error
        pins = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
        if len(pins) != 1 or not hashes:
            raise ToolError(f"{path}: {requirement.name} is not pinned to one version with hashes")
        found.append(
            PinnedRequirement(project=canonicalize_name(requirement.name), version=pins[0], hashes=hashes)
        )
    return tuple(found)

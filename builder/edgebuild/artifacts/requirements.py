"""Requirements files whose every line pins one version with hashes."""

import re
from dataclasses import dataclass
from pathlib import Path

from edgebuild.errors import ToolError

# What pip-compile and uv write: a name, perhaps extras, one version, perhaps a condition, then hashes. Every build reads
# these files, and the whole grammar (PEP 508) takes longer to import than all of them to read.
_PINNED = re.compile(
    r"(?P<name>\w[\w.-]*)(\[[^\]]*\])? *== *(?P<version>[\w.+!-]+) *(;[^#]*?)?(?P<hashes>( +--hash=sha256:[0-9a-f]{64})+)",
    re.ASCII,
)


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
        pin = _PINNED.fullmatch(content)
        if pin is None:
            raise ToolError(f"{path}: {content[:60]!r} is not pinned to one version with hashes")
        found.append(
            PinnedRequirement(
                # The name as the simple repository API spells it (PEP 503).
                project=re.sub(r"[-_.]+", "-", pin["name"]).lower(),
                version=pin["version"],
                hashes=frozenset(re.findall(r"[0-9a-f]{64}", pin["hashes"])),
            )
        )
    return tuple(found)

"""What pip is configured with on this machine. uv does not read it, so that it is passed on.

Source: pip's documentation, "Configuration": files in their order, later ones over earlier ones, then the environment.
"""

import configparser
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgebuild.errors import ToolError
from edgebuild.host import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class PipSettings:
    """Where pip looks for packages.

    Attributes:
        index_url: The main index, or "" when pip is not told of one.
        extra_index_urls: Further ones.
        find_links: Folders and pages that hold wheels.
    """

    index_url: str
    extra_index_urls: tuple[str, ...]
    find_links: tuple[str, ...]


def read_pip_settings(host: Host) -> PipSettings:
    """Read pip's configuration files and variables.

    Raises:
        ToolError: A file is no configuration.
    """
    settings = _read_files(host)
    environment = host.environment

    def listed(name: str) -> tuple[str, ...]:
        variable = f"PIP_{name.upper().replace('-', '_')}"
        return tuple(dict.fromkeys(f"{environment.get(variable, '')} {settings.get(name, '')}".split()))

    return PipSettings(
        index_url=environment.get("PIP_INDEX_URL") or settings.get("index-url", ""),
        extra_index_urls=listed("extra-index-url"),
        find_links=listed("find-links"),
    )


def _read_files(host: Host) -> dict[str, str]:
    settings: dict[str, str] = {}
    for path in _files(host):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ToolError(f"{path}: cannot be read: {error}", hint="mend pip's configuration") from error
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= dict(parser.items(section))
    return settings


def _files(host: Host) -> Iterator[Path]:
    environment = host.environment
    named = environment.get("PIP_CONFIG_FILE")
    if named == "/dev/null":
        return
    home = Path(environment.get("HOME", "/nonexistent"))
    for folder in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":"):
        yield Path(folder) / "pip/pip.conf"
    yield Path("/etc/pip.conf")
    yield home / ".pip/pip.conf"
    yield Path(environment.get("XDG_CONFIG_HOME", str(home / ".config"))) / "pip/pip.conf"
    yield Path(sys.prefix) / "pip.conf"
    if named:
        yield Path(named)

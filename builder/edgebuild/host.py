"""The machine and moment a build runs in, as one frozen value made in `cli/`.

Nothing below `cli/` reads the environment, the wall clock or the working directory; it is given a `Host`.
"""

import platform as _platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebuild.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a build may know of its surroundings.

    Attributes:
        environment: The process environment as it was at start.
        working_directory: Absolute path against which the user's relative paths are read.
        cache_directory: Absolute path of the store.
        machine: The kernel's name of the processor: "x86_64" or "aarch64".
        cpu_count: Processors that may be used, at least 1.
        now_s: Seconds since 1970 at start; for messages and lock ages only, never written into an image.
        source_date_epoch_s: SOURCE_DATE_EPOCH in seconds, or None.
    """

    environment: Mapping[str, str]
    working_directory: Path
    cache_directory: Path
    machine: str
    cpu_count: int
    now_s: int
    source_date_epoch_s: int | None

    def path(self, text: str) -> Path:
        """Make a path that the user wrote absolute, with `~` for the home directory."""
        return self.working_directory / Path(text).expanduser()


def make_host(
    *,
    environment: Mapping[str, str],
    working_directory: Path,
    cpu_count: int,
    now_s: int,
    cache: Path | None = None,
) -> Host:
    """Gather the host's facts from what the command line was started with.

    Args:
        environment: The process environment.
        working_directory: Absolute.
        cpu_count: Processors that may be used.
        now_s: Seconds since 1970.
        cache: The store's folder when given by option; else EDGEBUILD_CACHE, else the XDG cache folder.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is not a number of seconds, or no place for the store is known.

    Source: https://reproducible-builds.org/specs/source-date-epoch/ and the XDG base directory specification 0.8.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(_platform.machine(), _platform.machine())
    return Host(
        environment=dict(environment),
        working_directory=working_directory,
        cache_directory=working_directory / (cache or _default_cache(environment)),
        machine=machine,
        cpu_count=max(1, cpu_count),
        now_s=now_s,
        source_date_epoch_s=_epoch(environment.get("SOURCE_DATE_EPOCH")),
    )


def _default_cache(environment: Mapping[str, str]) -> Path:
    if own := environment.get("EDGEBUILD_CACHE"):
        return Path(own)
    if xdg := environment.get("XDG_CACHE_HOME"):
        return Path(xdg) / "edgebuild"
    if home := environment.get("HOME"):
        return Path(home) / ".cache" / "edgebuild"
    raise UsageError(
        "no place for the store: HOME is not set", hint="set EDGEBUILD_CACHE or give --cache DIR"
    )


def _epoch(text: str | None) -> int | None:
    if text is None or not text.strip():
        return None
    # 2^35 s is the year 3058: later ones overflow fields of the tar and gzip formats.
    if not text.strip().isascii() or not text.strip().isdecimal() or int(text) >= 2**35:
        raise UsageError(
            f"SOURCE_DATE_EPOCH={text!r} is not a number of seconds",
            hint="set it to e.g. $(git log -1 --format=%ct)",
        )
    return int(text)

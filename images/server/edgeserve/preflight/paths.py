"""Can the server write where its configuration says that it writes?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from edgeserve import exits
from edgeserve.kernel import mounts
from edgeserve.preflight.results import Finding, Result


def check_paths(state_dir: str, trace: str) -> Result:
    """Write and remove a file in the state folder; open the trace's file, if there is to be one.

    An image names one in any case. Where nothing is mounted over it and the root is read-only, nothing is kept, which is
    meant so; what is mounted there was meant to be written.
    """
    seen = {"state": "kept" if usable_state(state_dir) else "not kept"}
    findings = (*_try_state(state_dir), *_try_trace(trace))
    return Result(check="paths", seen=seen, findings=findings)


def usable_state(state_dir: str) -> Path | None:
    """Return the state folder if this process may write to it."""
    return Path(state_dir) if state_dir and os.access(state_dir, os.W_OK | os.X_OK) else None


def _try_trace(trace: str) -> Iterator[Finding]:
    if not trace:
        return
    try:
        Path(trace).open("ab").close()
    except OSError as error:
        yield Finding(
            problem=f"server.trace: {trace} cannot be written: {error.strerror or error}",
            remedy=f"name a file in a folder that user {os.geteuid()} may write to",
            exit_code=exits.PATHS,
        )


def _try_state(state_dir: str) -> Iterator[Finding]:
    if not state_dir:
        return
    folder = Path(state_dir)
    is_mounted = any(mount.point == str(folder.resolve()) for mount in mounts())
    if folder.is_dir() and not is_mounted and usable_state(str(folder)) is None:
        return
    probe = folder / f".edgeserve-{os.getpid()}"
    try:
        # Permissions do not tell of a full disk; writing does.
        with probe.open("xb") as file:
            file.write(b"edgeserve")
    except OSError as error:
        yield Finding(
            problem=f"server.state_dir: {folder} cannot be written: {error.strerror or error}",
            remedy=f"mount a volume there that user {os.geteuid()} may write to, or none at all",
            exit_code=exits.PATHS,
        )
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)

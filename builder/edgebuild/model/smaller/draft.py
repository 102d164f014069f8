"""A folder that is there whole or not at all, and what an unfinished run leaves for the next one.

.NAME.edgebuild/         beside the folder NAME that is to be; gone when the work is done
.NAME.edgebuild/model/   what becomes NAME by one rename
.NAME.edgebuild/before/  what was NAME, while the new one takes its place
.NAME.edgebuild/state    the unfinished training, if there is one
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgebuild.artifacts.files import discard, remove_tree
from edgebuild.artifacts.locks import try_locked
from edgebuild.errors import ToolError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Where to write.

    Attributes:
        folder: Empty folder that becomes the output.
        state: Folder whose files stay when the work fails or is interrupted, for the next run.
    """

    folder: Path
    state: Path


def verify_output(output: Path, *, replace: bool, sources: tuple[Path, ...]) -> None:
    """Refuse an output that would destroy something, before any work is done.

    Args:
        output: Absolute path of the folder to be.
        replace: Whether a checkpoint that is there may go.
        sources: Folders that are read.

    Raises:
        UsageError: It must not be written.
    """
    there = output.resolve()
    for source in sources:
        if there == source.resolve() or there in source.resolve().parents:
            raise UsageError(
                f"--output {output} is or holds the model that is read", hint="choose another --output"
            )
    if not output.exists() and not output.is_symlink():
        if _aside(output).exists() and not replace:
            raise UsageError(
                f"{output} is there already, set aside as {_aside(output)} by a run that was killed",
                hint="choose another --output, or replace it with --force",
            )
        return
    if not replace:
        raise UsageError(
            f"{output} is there already", hint="choose another --output, or replace it with --force"
        )
    if not output.is_dir() or output.is_symlink() or not _is_replaceable(output):
        raise UsageError(
            f"{output} is no checkpoint, and --force replaces nothing else", hint="choose another --output"
        )


def _is_replaceable(folder: Path) -> bool:
    return (folder / "config.json").is_file() or not any(folder.iterdir())


@contextmanager
def drafted(output: Path) -> Iterator[Draft]:
    """Give a draft; leaving the context makes it the output, an exception leaves what was there.

    Raises:
        UsageError: Another run writes the same.
        ToolError: The folder cannot be made, or the disk is full.
    """
    work = _work(output)
    made = _missing_parents(output)
    try:
        try:
            work.mkdir(parents=True, exist_ok=True)
            with try_locked(work / "lock") as is_ours:
                if not is_ours:
                    raise UsageError(
                        f"another run writes {output}", hint="wait for it, or choose another --output"
                    )
                yield from _fill(work, output)
        except OSError as error:
            raise disk_fault(output, error) from error
    finally:
        for parent in made:
            # One that holds something, the output above all, stays.
            with suppress(OSError):
                parent.rmdir()


def _fill(work: Path, output: Path) -> Iterator[Draft]:
    draft = Draft(folder=work / "model", state=work / "state")
    # A run that was killed could not clean up.
    _take_back(output)
    remove_tree(_aside(output))
    remove_tree(draft.folder)
    draft.folder.mkdir()
    draft.state.mkdir(exist_ok=True)
    is_done = False
    try:
        yield draft
        _put(draft.folder, output)
        is_done = True
    finally:
        # First: what was there before must not go with the rest.
        _take_back(output)
        discard(draft.folder)
        if is_done or not any(draft.state.iterdir()):
            discard(work)


def _put(folder: Path, output: Path) -> None:
    """Make a folder the output; wherever it ends, `_take_back` has to follow."""
    if output.exists():
        output.rename(_aside(output))
    folder.rename(output)


def _take_back(output: Path) -> None:
    """Give what was set aside its place again if nothing took it."""
    if _aside(output).exists() and not output.exists():
        _aside(output).rename(output)


def _work(output: Path) -> Path:
    return output.with_name(f".{output.name}.edgebuild")


def _aside(output: Path) -> Path:
    return _work(output) / "before"


def _missing_parents(path: Path) -> list[Path]:
    """List the parents that are not there yet, deepest first."""
    return [parent for parent in path.parents if not parent.exists()]


def disk_fault(output: Path, error: OSError) -> ToolError:
    """Say in one line what the file system refused."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ToolError(
            f"no space is left to write {output}", hint="make room, or choose another place with --output"
        )
    return ToolError(
        f"{error.filename or output}: {error.strerror or error}", hint="check the folder and its permissions"
    )

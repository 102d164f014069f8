"""The folder that `edgebuild model prune` and `distill` write: whole or not at all, whatever ends them."""

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from edgebuild.errors import EdgebuildError, ToolError, UsageError
from edgebuild.model.smaller.draft import drafted, verify_output
from tests.support.tiny_llama import write_tiny_llama

# Replaces a folder and is killed after so many renames, before whatever comes next.
KILLED = """
import os, signal, sys
from pathlib import Path
from edgebuild.model.smaller.draft import drafted

output, renames, state = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
done = []

def watch(event, arguments):
    if event in ("os.rename", "shutil.rmtree"):
        if len(done) == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(event)

with drafted(output) as draft:
    (draft.folder / "config.json").write_text("new")
    if state:
        (draft.state / "kept").write_text(state)
    sys.addaudithook(watch)
"""


def test_what_is_there_is_refused(tiny: Path, tmp_path: Path) -> None:
    verify_output(tmp_path / "new", replace=False, sources=(tiny,))
    other = write_tiny_llama(tmp_path / "other")
    with pytest.raises(UsageError, match="is there already"):
        verify_output(other, replace=False, sources=(tiny,))
    verify_output(other, replace=True, sources=(tiny,))


def test_what_is_no_checkpoint_is_never_replaced(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").write_text("words")
    (tmp_path / "file").write_text("words")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("letters", "file", "link"):
        with pytest.raises(UsageError, match="is no checkpoint"):
            verify_output(tmp_path / name, replace=True, sources=(tiny,))


def test_what_is_read_is_never_replaced(tiny: Path, tmp_path: Path) -> None:
    for output in (tiny, tmp_path):
        with pytest.raises(UsageError, match="is or holds the model that is read"):
            verify_output(output, replace=True, sources=(tiny,))


def test_a_draft_becomes_the_output_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b"
    with drafted(output) as draft:
        (draft.folder / "file").write_text("new")
        assert not output.exists()
    assert [path.name for path in output.iterdir()] == ["file"]
    with drafted(output) as draft:
        (draft.folder / "other").write_text("newer")
    assert [path.name for path in output.iterdir()] == ["other"]
    assert [path.name for path in output.parent.iterdir()] == ["b"]


def test_a_failure_leaves_nothing_but_an_unfinished_training(tmp_path: Path) -> None:
    def fail(output: Path, *, with_state: bool) -> NoReturn:
        with drafted(output) as draft:
            (draft.folder / "file").write_text("half")
            if with_state:
                (draft.state / "kept").write_text("steps")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "a" / "b", with_state=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "c", with_state=True)
    assert (tmp_path / ".c.edgebuild" / "state" / "kept").read_text() == "steps"
    assert not (tmp_path / ".c.edgebuild" / "model").exists()
    with drafted(tmp_path / "c") as draft:
        assert (draft.state / "kept").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("renames", [1, 2])
@pytest.mark.parametrize("has_state", [False, True])
def test_a_run_killed_while_it_replaces_loses_nothing(
    tiny: Path, tmp_path: Path, renames: int, *, has_state: bool
) -> None:
    output, work = write_tiny_llama(tmp_path / "out"), tmp_path / ".out.edgebuild"
    (output / "config.json").write_text("{}")
    argv = [sys.executable, "-c", KILLED, str(output), str(renames), "steps" if has_state else ""]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (work / "before" / "config.json").read_text() == "{}"
    assert output.exists() == (renames == 2)

    with pytest.raises(UsageError, match="is there already"):
        verify_output(output, replace=False, sources=(tiny,))
    verify_output(output, replace=True, sources=(tiny,))
    with pytest.raises(ToolError), drafted(output) as draft:
        draft.folder.rmdir()
    assert (output / "config.json").read_text() == ("{}" if renames == 1 else "new")
    assert work.exists() == has_state
    with drafted(output) as draft:
        (draft.folder / "config.json").write_text("newest")
    assert (output / "config.json").read_text() == "newest"
    assert not work.exists()


def test_a_failed_rename_takes_back_what_was_there(tmp_path: Path) -> None:
    output = write_tiny_llama(tmp_path / "out")
    names = {path.name for path in output.iterdir()}
    with pytest.raises(ToolError), drafted(output) as draft:
        draft.folder.rmdir()
    assert {path.name for path in output.iterdir()} == names
    assert not (tmp_path / ".out.edgebuild").exists()


def test_two_runs_do_not_write_the_same(tmp_path: Path) -> None:
    caught: list[EdgebuildError] = []

    def second() -> None:
        try:
            with drafted(tmp_path / "out"):
                pass
        except EdgebuildError as error:
            caught.append(error)

    with drafted(tmp_path / "out") as draft:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert draft.folder.is_dir()
    assert [str(error) for error in caught] == [f"another run writes {tmp_path / 'out'}"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    with pytest.raises(ToolError, match="Not a directory"), drafted(tmp_path / "file" / "out"):
        pass

"""All checks together: before `serve` loads the model, and alone as `edgeserve check`."""

from __future__ import annotations

from collections.abc import Iterator

from edgeserve import exits
from edgeserve.engine.library import library_folder
from edgeserve.log import Log
from edgeserve.preflight.cpu import check_cpu
from edgeserve.preflight.memory import check_memory
from edgeserve.preflight.model import ModelCheckError, check_files, verify_model
from edgeserve.preflight.pages import check_pages
from edgeserve.preflight.paths import check_paths
from edgeserve.preflight.results import Result
from edgeserve.settings import Runtime


def run_preflight(runtime: Runtime, log: Log) -> int:
    """Make every check that takes no time, and log what it finds.

    Returns:
        OK, or the exit code of the first fault; the rest is in the log.
    """
    codes = []
    for result in _checks(runtime):
        result.write(log)
        codes.append(result.exit_code)
    return next((code for code in codes if code), exits.OK)


def _checks(runtime: Runtime) -> Iterator[Result]:
    folder = library_folder(runtime.engine.library_dir)
    # Without one the engine says what is missing: it has more to say of it.
    if folder is not None:
        pages = check_pages(folder)
        yield pages
        if not pages.exit_code:
            yield check_cpu(folder)
    yield check_memory(runtime.memory)
    yield check_paths(runtime.server.state_dir, runtime.server.trace)
    yield check_files(runtime)


def check(runtime: Runtime, log: Log) -> int:
    """Run `edgeserve check`: every check, the model's digest too.

    Returns:
        The exit code.
    """
    code = run_preflight(runtime, log)
    if code not in {exits.MODEL_FILE, exits.MODEL_CHANGED}:
        try:
            verify_model(runtime, log)
        except ModelCheckError as error:
            error.result.write(log)
            code = code or error.result.exit_code
    log.info("check", result="failed" if code else "ok", code=code)
    return code

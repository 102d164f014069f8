"""`python -m edgetorch`: reads one request as JSON from standard input, tells of its work in JSON lines.

Exit codes: 0 done; 1 refused or failed, and an event says why; 3 stopped by SIGTERM. Anything else is a bug and leaves a
traceback on standard error.
"""

import errno
import json
import signal
import sys
from types import FrameType
from typing import Any

from edgetorch.events import STOPPED, Events, WorkerError
from edgetorch.texts import parse_material

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def main() -> int:
    """Do what the request says and return the exit code."""
    events = Events.on_standard_output()
    signal.signal(signal.SIGTERM, _stop)
    request = json.load(sys.stdin)
    try:
        events.result(_run(request, events))
    except WorkerError as error:
        events.error(error)
        return 1
    except Exception as error:
        told = _known_failure(error)
        if told is None:
            raise
        events.error(told)
        return 1
    return 0


def _run(request: dict[str, Any], events: Events) -> dict[str, Any]:
    events.phase("start PyTorch")
    # Slow to import, and no request needs both.
    material = parse_material(request.pop("material"))
    if request.pop("command") == "prune":
        from edgetorch.prune import PruneJob, prune  # noqa: PLC0415

        return prune(PruneJob(material=material, **request), events=events)
    from edgetorch.distill import DistillJob, distill  # noqa: PLC0415
    from edgetorch.training import Settings  # noqa: PLC0415

    settings = Settings(**request.pop("settings"))
    return distill(DistillJob(material=material, settings=settings, **request), events=events)


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    sys.exit(STOPPED)


def _known_failure(error: Exception) -> WorkerError | None:
    """Tell failures of the machine from bugs; PyTorch and safetensors have no types of their own for them, and no numbers."""
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_SPACE or (number is None and _tells_of_no_space(text)):
        return WorkerError(
            "disk", "no space is left to write the model", hint="make room or choose another --output"
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM or "allocate memory" in text:
        return WorkerError(
            "memory", "not enough memory for this model", hint="take a smaller model or a smaller --context"
        )
    if isinstance(error, OSError):
        return WorkerError("file", f"{error.filename or 'a file'}: {error.strerror or text}")
    return None


def _tells_of_no_space(text: str) -> bool:
    return any(f"os error {number}" in text for number in _NO_SPACE) or "No space left" in text


if __name__ == "__main__":
    sys.exit(main())

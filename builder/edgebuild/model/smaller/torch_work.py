"""Runs `edgetorch` in the environment `convert` and turns what it tells into progress, results and errors."""

import json
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Any

from edgebuild.data import data_path
from edgebuild.errors import EdgebuildError, ModelError, ToolError, UsageError
from edgebuild.host import Host
from edgebuild.model.environment import TorchEnvironment
from edgebuild.process import run
from edgebuild.progress import Progress, Task

_KINDS: Mapping[str, type[EdgebuildError]] = {"model": ModelError, "text": UsageError}
# What a shell reports for SIGKILL, which is how Linux ends a process when memory runs out.
_KILLED = (-9, 137)


def run_torch(
    request: Mapping[str, object],
    *,
    title: str,
    environment: TorchEnvironment,
    host: Host,
    progress: Progress,
) -> dict[str, Any]:
    """Do one request and return its result.

    Args:
        request: The command and its arguments, as `edgetorch` takes them.
        title: What the work is called in messages, e.g. "pruning".
        environment: Gives the Python.
        host: This machine.
        progress: Told of every phase.

    Raises:
        ModelError: A model is damaged, or models do not go together.
        UsageError: The text is not enough.
        ToolError: The machine lacks memory or disk, or training diverged.
    """
    modules = data_path("builder")
    listener = _Listener(progress)
    with closing(listener):
        done = run(
            environment.command(modules / "edgetorch" / "__main__.py"),
            environment=environment.variables(host, modules),
            stdin=json.dumps(request).encode(),
            on_line=listener.hear,
            check=False,
        )
    if listener.error is not None:
        raise listener.error
    if done.returncode == 0 and listener.result is not None:
        return listener.result
    if done.returncode in _KILLED:
        raise ToolError(
            f"{title} was killed, most likely since memory ran out",
            hint="take a smaller model or a smaller --context, or a machine with more memory",
        )
    raise ToolError(
        f"{title} failed: {done.reason}", hint="this is a bug of edgebuild, or PyTorch does not run here"
    )


class _Listener:
    """Takes the events of a run, one a line."""

    def __init__(self, progress: Progress) -> None:
        self.result: dict[str, Any] | None = None
        self.error: EdgebuildError | None = None
        self._progress = progress
        self._phase = ExitStack()
        self._task: Task | None = None

    def close(self) -> None:
        """End the phase."""
        self._phase.close()

    def hear(self, line: str) -> None:
        """Take one event."""
        event = json.loads(line)
        match event["event"]:
            case "phase":
                self._phase.close()
                self._task = self._phase.enter_context(self._progress.task(event["title"]))
            case "progress":
                self._status(f"{event['done']:,}/{event['total']:,} {event['unit']}")
            case "step":
                self._status(_render_step(event))
            case "note":
                self._progress.note(event["text"])
            case "result":
                self.result = event["result"]
            case "error":
                kind = _KINDS.get(event["kind"], ToolError)
                self.error = kind(event["message"], hint=event["hint"])
            case other:
                raise AssertionError(f"edgetorch tells of {other!r}")

    def _status(self, text: str) -> None:
        if self._task is not None:
            self._task.status(text)


def _render_step(event: Mapping[str, Any]) -> str:
    return (
        f"step {event['step']:,}/{event['steps']:,}, loss {event['loss']:.4f}, "
        f"{event['tokens_per_s']:,.0f} tokens/s, {_render_duration(event['left_s'])} left"
    )


def _render_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"

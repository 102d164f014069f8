"""One piece of work beside another, in a thread of its own."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

Result = TypeVar("Result")


class Beside(Generic[Result]):
    """Runs `work` from the beginning of its context; at the context's end it is done, or was stopped.

    with Beside(copy_model, stop=sink.stop) as model:
        build_software(between_steps=model.check)
        digest = model.result()

    The thread that opens the context is the one that an interrupt reaches.
    """

    def __init__(self, work: Callable[[], Result], *, stop: Callable[[], None]) -> None:
        """Say what is done; nothing begins yet.

        Args:
            work: What is done.
            stop: Makes `work` fail soon; called when the context ends by an error.
        """
        self._work = work
        self._stop = stop
        self._results: list[Result] = []
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="beside", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop()
        self._thread.join()

    def check(self) -> None:
        """Raise what the work failed with, if it has."""
        if self._fault is not None:
            raise self._fault

    def result(self) -> Result:
        """Wait for the work, and return what it returned or raise what it raised."""
        self._thread.join()
        self.check()
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._fault = error

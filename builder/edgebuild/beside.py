"""Work beside other work, in threads: one piece beside this thread, or a few of a kind at once. What fails stops the rest."""

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    items: Iterable[Item], work: Callable[[Item], Result], *, at_once: int, stop: Callable[[], None]
) -> tuple[Result, ...]:
    """Work on a few items at a time and return what came of each, in their order; the first fault ends the others.

    Args:
        items: What is worked on.
        work: Works on one, in a thread of its own.
        at_once: How many threads.
        stop: Makes those under way fail soon; called when one failed, or this thread is interrupted.

    Raises:
        BaseException: What the first one to fail raised.
    """
    # Not at the top: it brings `logging` along, which a build of one small model does without.
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait  # noqa: PLC0415

    with ThreadPoolExecutor(at_once, thread_name_prefix="beside") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            # The fault that came first, not that of one which it stopped.
            for future in futures:
                if future.done():
                    future.result()
            return tuple(future.result() for future in futures)
        except BaseException:
            # What waits is cancelled first, so that nothing begins where the others were stopped.
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise


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

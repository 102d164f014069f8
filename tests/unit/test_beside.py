"""One piece of work beside another: results, faults of either, and interrupts."""

import threading

import pytest

from edgebuild.beside import Beside, side_by_side
from edgebuild.errors import ToolError


def never() -> None:
    raise AssertionError("nothing was to be stopped")


class Stoppable:
    """Work that lasts until it is stopped."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.stopped = threading.Event()

    def __call__(self) -> str:
        self.began.set()
        assert self.stopped.wait(30)
        raise ToolError("it was stopped")


def test_both_go_on_at_once() -> None:
    begun, answered = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert answered.wait(30)
        return threading.current_thread().name

    with Beside(work, stop=never) as other:
        assert begun.wait(30)
        other.check()
        answered.set()
        assert other.result() == "beside"


def test_its_fault_is_raised_where_it_is_asked_for() -> None:
    fault = ToolError("no space left")

    def work() -> None:
        raise fault

    stopped = threading.Event()
    with pytest.raises(ToolError) as caught, Beside(work, stop=stopped.set) as other:
        other.result()
    assert caught.value is fault
    assert stopped.is_set()


def test_its_fault_can_be_noticed_between_steps_here() -> None:
    def work() -> None:
        raise ToolError("no space left")

    def go_on() -> None:
        with Beside(work, stop=lambda: None) as other:
            while True:
                other.check()

    with pytest.raises(ToolError, match="no space left"):
        go_on()


@pytest.mark.parametrize("fault", [ToolError("no network"), KeyboardInterrupt()], ids=["fault", "interrupt"])
def test_a_fault_here_stops_and_awaits_it(fault: BaseException) -> None:
    work = Stoppable()

    def fail() -> None:
        with Beside(work, stop=work.stopped.set):
            assert work.began.wait(30)
            raise fault

    with pytest.raises(type(fault)) as caught:
        fail()
    assert caught.value is fault
    assert "beside" not in {thread.name for thread in threading.enumerate()}


def test_without_asking_it_is_awaited() -> None:
    told: list[int] = []
    with Beside(lambda: told.append(1), stop=never):
        pass
    assert told == [1]


def test_a_few_at_once_and_results_in_order() -> None:
    both = threading.Barrier(2)

    def work(number: int) -> int:
        both.wait(30)
        return number * number

    assert side_by_side([3, 1, 2, 4], work, at_once=2, stop=never) == (9, 1, 4, 16)


def test_the_first_fault_ends_the_others() -> None:
    other, begun = Stoppable(), []

    def work(name: str) -> str:
        begun.append(name)
        if name == "fails":
            assert other.began.wait(30)
            raise ToolError("no space left")
        return other()

    with pytest.raises(ToolError, match="no space left"):
        side_by_side(["goes on", "fails", "waits", "waits too"], work, at_once=2, stop=other.stopped.set)
    assert {"goes on", "fails"} <= set(begun)
    assert "waits too" not in begun

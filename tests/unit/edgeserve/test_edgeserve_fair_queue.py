"""Clients are served in turn, and nothing that was put in is lost, served twice or reordered within one client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.fair_queue import FairQueue


def _drain(queue: FairQueue[str]) -> str:
    taken = []
    while queue:
        taken.append(queue.pop())
    return " ".join(taken)


def _filled(*items: str) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for item in items:
        queue.push(item, client=item[0])
    return queue


def test_one_client_is_served_in_order() -> None:
    assert _drain(_filled("a1", "a2", "a3")) == "a1 a2 a3"


def test_clients_take_turns() -> None:
    assert _drain(_filled("a1", "a2", "a3", "b1", "b2", "c1")) == "a1 b1 c1 a2 b2 a3"


def test_who_was_just_served_lets_a_newcomer_go_first() -> None:
    queue = _filled("a1", "a2", "a3")
    assert queue.pop() == "a1"
    queue.push("b1", client="b")
    assert _drain(queue) == "b1 a2 a3"


def test_who_comes_again_and_again_shuts_nobody_out() -> None:
    queue = _filled("a1", "a2", "a3")
    taken = []
    for number in range(6):
        for client in "xy":
            if not any(item[0] == client for item in queue):
                queue.push(f"{client}{number}", client=client)
        taken.append(queue.pop()[0])
    assert taken.count("a") == 2


def test_removes_wherever_they_stand() -> None:
    queue = _filled("a1", "a2", "b1", "a3")
    queue.remove(lambda item: item in {"a1", "b1"})
    assert list(queue) == ["a2", "a3"]
    queue.clear()
    assert not queue
    with pytest.raises(IndexError):
        queue.pop()


@given(st.lists(st.one_of(st.sampled_from("abc"), st.none()), max_size=60))
def test_nobody_is_served_twice_while_another_waits(steps: list[str | None]) -> None:
    queue: FairQueue[str] = FairQueue()
    put: list[str] = []
    taken: list[str] = []
    for number, client in enumerate(steps):
        if client is not None:
            put.append(f"{client}{number}")
            queue.push(put[-1], client=client)
        elif queue:
            others = {item[0] for item in queue}
            last = taken[-1][0] if taken else ""
            taken.append(queue.pop())
            assert taken[-1][0] != last or others == {last}
    taken.extend(_drain(queue).split())
    assert sorted(taken) == sorted(put)
    for client in "abc":
        assert [item for item in taken if item[0] == client] == [item for item in put if item[0] == client]

from edgeserve.engine.batch import Pace


def test_the_first_chunk_is_a_guess() -> None:
    assert Pace().chunk_tokens(512, others_wait=False) == 256
    assert Pace().chunk_tokens(100, others_wait=False) == 100


def test_a_pass_is_bounded_by_time() -> None:
    pace = Pace()
    pace.record(256, 2.0)
    assert pace.chunk_tokens(512, others_wait=False) == 128
    assert pace.chunk_tokens(512, others_wait=True) == 32


def test_a_fast_machine_fills_the_batch() -> None:
    pace = Pace()
    pace.record(512, 0.01)
    assert pace.chunk_tokens(511, others_wait=True) == 511


def test_it_follows_the_machine() -> None:
    pace = Pace()
    pace.record(100, 0.1)
    for _ in range(30):
        pace.record(100, 1.0)
    assert 95 <= pace.chunk_tokens(512, others_wait=False) <= 105


def test_small_passes_say_nothing() -> None:
    pace = Pace()
    pace.record(4, 10.0)
    pace.record(100, 0.0)
    assert pace.chunk_tokens(512, others_wait=False) == 256

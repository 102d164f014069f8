"""Order of rows, learning rate and names: the parts of edgetorch that need no PyTorch."""

from itertools import islice

import pytest

from edgetorch.naming import pruned_config, pruned_name
from edgetorch.order import batches_from, cut_batches, epoch_batches
from edgetorch.schedule import rate_at

LENGTHS = [3 + (7 * index) % 40 for index in range(500)]


def test_every_row_is_seen_once_in_a_pass() -> None:
    batches = epoch_batches(LENGTHS, batch_tokens=128, seed=1, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    assert all(len(batch) * max(LENGTHS[index] for index in batch) <= 128 for batch in batches)
    padding = sum(
        len(batch) * max(LENGTHS[i] for i in batch) - sum(LENGTHS[i] for i in batch) for batch in batches
    )
    assert padding < sum(LENGTHS) * 0.1


def test_order_is_settled_by_seed_and_pass() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return epoch_batches(LENGTHS, batch_tokens=128, seed=seed, epoch=epoch)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)


def test_a_run_that_goes_on_sees_what_it_would_have_seen() -> None:
    whole = list(islice(batches_from(LENGTHS, batch_tokens=128, seed=3, first_step=0), 400))
    for first in (1, 77, 150, 399):
        rest = islice(batches_from(LENGTHS, batch_tokens=128, seed=3, first_step=first), 400 - first)
        assert list(rest) == whole[first:]


def test_a_row_longer_than_a_batch_is_a_batch() -> None:
    assert cut_batches([5, 9, 100, 200], 20) == [(0, 2), (2, 3), (3, 4)]
    assert cut_batches([], 20) == []


def test_rate_rises_then_falls_to_nearly_nothing() -> None:
    rates = [rate_at(step, steps=200, highest=0.5) for step in range(200)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[9] == rates[10] == 0.5
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert rate_at(0, steps=1, highest=0.5) == 0.5


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.layers.1.mlp.up_proj.weight", None),
        ("model.layers.10.input_layernorm.weight", "model.layers.2.input_layernorm.weight"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_tensors_are_numbered_anew(name: str, wanted: str | None) -> None:
    assert pruned_name(name, (0, 7, 10)) == wanted


def test_configuration_says_what_is_left() -> None:
    config = {
        "num_hidden_layers": 4,
        "hidden_size": 8,
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "max_window_layers": 2,
    }
    changed = pruned_config(config, (0, 2, 3))
    assert changed == {
        "num_hidden_layers": 3,
        "hidden_size": 8,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "max_window_layers": 1,
    }
    assert config["num_hidden_layers"] == 4
    assert pruned_config({"num_hidden_layers": 4}, (1,)) == {"num_hidden_layers": 1}

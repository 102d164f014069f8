"""Gates and what is written of measured figures."""

import dataclasses

import pytest
from pydantic import ValidationError

from edgebuild.gates import QualityGates, stricter
from edgebuild.quality import (
    Divergence,
    Quality,
    TaskQuality,
    TextQuality,
    figure,
    find_failures,
    percent,
    quality_card,
    quality_labels,
    quality_lines,
)

DIVERGENCE = Divergence(
    perplexity_ratio=1.0213, perplexity_ratio_error=0.002, mean=0.0312, mean_error=0.001, median=0.01,
    percentile_99=0.4, maximum=2.0, probability_change_rms=0.03, same_top=0.934, same_top_error=0.01,
)  # fmt: skip
QUALITY = Quality(
    quantization="Q4_K_M",
    file_bytes=2_000_000,
    text=TextQuality(
        text="text.txt", digest="sha256:00", context_tokens=512, scored_tokens=2040, perplexity=12.345,
        perplexity_error=0.5, divergence=DIVERGENCE,
    ),
    tasks=TaskQuality(tasks="tasks.jsonl", digest="sha256:11", asked=200, exact=197, wrong=()),
)  # fmt: skip


def gates(**values: object) -> QualityGates:
    return QualityGates.model_validate(values)


@pytest.mark.parametrize(
    ("values", "failures"),
    [
        ({}, 0),
        ({"perplexity_increase": "2.2%", "kl_divergence": 0.04, "exact_match": "98.5%"}, 0),
        ({"perplexity_increase": 0.0213}, 0),
        ({"perplexity_increase": "2.12%"}, 1),
        ({"kl_divergence": 0.0311}, 1),
        ({"exact_match": 0.986}, 1),
        ({"perplexity_increase": 0, "kl_divergence": 0, "exact_match": "100%"}, 3),
    ],
)
def test_what_is_past_a_gate(values: dict[str, object], failures: int) -> None:
    found = find_failures(QUALITY, gates(**values))
    assert len(found) == failures, found


def test_what_is_not_known_does_not_pass() -> None:
    bare = dataclasses.replace(QUALITY, text=None, tasks=None)
    assert len(find_failures(bare, gates(perplexity_increase=1, kl_divergence=1, exact_match=0))) == 3
    assert find_failures(bare, gates()) == ()


@pytest.mark.parametrize("value", ["x", "2", True, -0.1, "1234%", 1e9, [], None.__class__])
def test_gates_that_are_none(value: object) -> None:
    with pytest.raises(ValidationError):
        gates(kl_divergence=value)


def test_more_than_all_answers_cannot_be_exact() -> None:
    with pytest.raises(ValidationError, match="more than all"):
        gates(exact_match="101%")


def test_both_gates_hold() -> None:
    both = stricter(
        gates(kl_divergence=0.5, exact_match="90%"), gates(kl_divergence=0.1, perplexity_increase="3%")
    )
    assert both == gates(kl_divergence=0.1, exact_match=0.9, perplexity_increase=0.03)
    assert stricter(both, QualityGates()) == both


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1e-9, "0"),
        (0.031234, "0.0312"),
        (12.345, "12.3"),
        (0.0000123, "0.0000123"),
        (271699.7, "272000"),
    ],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_what_is_written() -> None:
    assert percent(0.996) == "99.6 %"
    labels = quality_labels(QUALITY)
    assert labels["dev.edgebuild.quality.perplexity_ratio"] == "1.0213"
    assert labels["dev.edgebuild.quality.exact_match"] == "197/200"
    assert all(name.startswith("dev.edgebuild.quality.") for name in labels)
    card = quality_card(QUALITY)
    assert card is not None
    assert card["text"]["kl_divergence"] == "0.0312"
    assert card["tasks"] == {"name": "tasks.jsonl", "digest": "sha256:11", "asked": 200, "exact": 197}
    assert "197 of 200 answers exact" in quality_lines(QUALITY)[1]
    assert (quality_labels(None), quality_card(None), quality_lines(None)) == ({}, None, ("not measured",))

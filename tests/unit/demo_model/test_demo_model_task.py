"""The demo model's task: its rules, the split, and the committed held-out file."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice

import pytest

from tests.unit.demo_model.modules import FOLDER, load_module

generate = load_module("generate")

# Severity, name with synonyms, unit, when it is broken, sentence about the number (and the side).
NUMBER_RULES: tuple[tuple[int, str, str, Callable[[int], bool], str], ...] = (
    (1, "obstacle|obst", r"m (left|right|centre)", lambda n: n < 40, "Obstacle ahead, {} m {}."),
    (2, "battery|batt|bat", "%()", lambda n: n < 10, "Battery critical, {} %."),
    (3, "tilt", "deg()", lambda n: n > 30, "Tilt high, {} deg."),
    (5, "battery|batt|bat", "%()", lambda n: 10 <= n < 20, "Battery low, {} %."),
    (6, "temp|temperature", "C()", lambda n: n > 70, "Too hot, {} C."),
    (7, "wind", "m/s()", lambda n: n > 12, "Wind strong, {} m/s."),
    (8, "link|signal", "%()", lambda n: n < 30, "Link weak, {} %."),
)


def oracle(line: str) -> str:
    """Read a line back and apply the documented rules, independently of the generator."""
    found: list[tuple[int, str]] = []
    for severity, names, unit, is_broken, sentence in NUMBER_RULES:
        match = re.search(rf"(?:^|[;,] )(?:{names})(?: |: |=)(\d+) ?{unit}(?=$|[;,])", line)
        if match and is_broken(int(match[1])):
            found.append((severity, sentence.format(match[1], match[2])))
    if re.search(r"(?:^|[;,] )gps(?: |: |=)(?:lost|none|no fix)(?=$|[;,])", line):
        found.append((4, "GPS lost."))
    return " ".join(sentence for _, sentence in sorted(found)) or "All normal."


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "alt 42 m; speed 7 m/s; obstacle 30 m left; battery 18 %; temp 41 C; gps ok",
            "Obstacle ahead, 30 m left. Battery low, 18 %.",
        ),
        ("battery 20 %, link 30 %, tilt 30 deg, temp 70 C, wind 12 m/s, obst 40 m right", "All normal."),
        (
            "bat=9%; gps=no fix; obstacle=39m centre",
            "Obstacle ahead, 39 m centre. Battery critical, 9 %. GPS lost.",
        ),
        ("battery: 10 %; tilt: 31 deg", "Tilt high, 31 deg. Battery low, 10 %."),
    ],
)
def test_rules_by_hand(line: str, expected: str) -> None:
    assert oracle(line) == expected


def test_generated_alerts_follow_the_rules() -> None:
    for example in islice(generate.training_examples(11), 2000):
        assert example.expected == oracle(example.prompt), example.prompt


def test_every_alert_kind_and_many_at_once_occur() -> None:
    alerts = [example.expected for example in islice(generate.training_examples(12), 2000)]
    for start in ("Obst", "Battery c", "Tilt", "GPS", "Battery l", "Too", "Wind", "Link", "All"):
        assert sum(start in alert for alert in alerts) >= 20, start
    assert sum(alert.count(".") >= 3 for alert in alerts) >= 100


def test_same_seed_same_lines_other_seed_other_lines() -> None:
    first = list(islice(generate.training_examples(5), 50))
    assert first == list(islice(generate.training_examples(5), 50))
    assert first != list(islice(generate.training_examples(6), 50))


def test_short_lines_are_shorter() -> None:
    def mean(presence: float) -> float:
        lines = islice(generate.training_examples(7, presence=presence), 200)
        return sum(len(line.prompt) for line in lines) / 200

    assert mean(0.15) < 0.5 * mean(1.0)


def test_training_never_yields_a_held_out_line() -> None:
    held_out = {example.prompt for example in generate.held_out_examples(1000)}
    drawn = {example.prompt for example in islice(generate.training_examples(1_000_000), 5000)}
    assert not held_out & drawn
    assert not any(generate.is_held_out(prompt) for prompt in drawn)


def test_committed_held_out_file_is_what_the_generator_makes() -> None:
    lines = (FOLDER / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines]
    assert len({document["prompt"] for document in documents}) == 1000
    assert all(generate.is_held_out(document["prompt"]) for document in documents)
    assert all(document["expected"] == oracle(document["prompt"]) for document in documents)
    assert run_generate("heldout") == lines


def test_command_prints_as_many_training_lines_as_asked() -> None:
    documents = [json.loads(line) for line in run_generate("train", "--count", "3", "--seed", "9")]
    expected = [example.prompt for example in islice(generate.training_examples(9), 3)]
    assert [document["prompt"] for document in documents] == expected


def run_generate(*arguments: str) -> list[str]:
    command = [sys.executable, str(FOLDER / "generate.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

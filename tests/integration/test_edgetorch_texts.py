"""How edgetorch makes rows of a user's text, with the demo model's real tokenizer: one start of the environment for all."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from edgebuild.data import data_path
from edgebuild.model.environment import TorchEnvironment
from edgebuild.model.evaluation.inputs import EvaluationTasks
from edgebuild.model.smaller.text import check_text, material
from edgebuild.oci.digest import Digest
from edgebuild.process import run
from tests.support.built import open_store
from tests.support.tiny_llama import DEMO

ALERTS = [{"prompt": f"battery {n} %", "expected": f"Battery low, {n} %."} for n in range(40)]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"battery {n} %"},
            {"role": "assistant", "content": f"Battery low, {n} %."},
        ]
    }
    for n in range(20)
]
LINES: dict[str, list[dict[str, Any]]] = {
    "alerts": ALERTS,
    "twice": [*ALERTS, *ALERTS],
    "chats": CHATS,
    "texts": [{"text": f"wind {n} m/s"} for n in range(30)],
    "long": [*ALERTS, {"prompt": "1234567890" * 30, "expected": "All normal."}],
    "few": ALERTS[:9],
}
PLAIN = "".join(f"line {n} of a text; " for n in range(400))


@pytest.fixture(scope="module")
def told(
    torch_packages: TorchEnvironment, built_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("texts")
    for name, lines in LINES.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # As editors of Windows save text; JSON takes a carriage return between its parts for a space.
    windows = "\r\n".join(json.dumps(line, indent="\r").replace("\n", "") for line in ALERTS)
    (folder / "windows.jsonl").write_bytes(codecs.BOM_UTF8 + windows.encode())
    (folder / "plain.txt").write_text(PLAIN)
    (folder / "marked.txt").write_bytes(codecs.BOM_UTF8 + PLAIN.encode())
    (folder / "short.txt").write_text(PLAIN[:300])
    tasks = [(line["prompt"], line["expected"]) for line in ALERTS[3:7]]

    def named(file: str, *, asked: bool = False, context_tokens: int = 128) -> dict[str, Any]:
        given = EvaluationTasks(name="tasks", digest=Digest.of(b""), tasks=tuple(tasks)) if asked else None
        return material(check_text(folder / file), given, context_tokens=context_tokens)

    wanted = {
        "alerts": named("alerts.jsonl"),
        "twice": named("twice.jsonl"),
        "chats": named("chats.jsonl"),
        "texts": named("texts.jsonl"),
        "long": named("long.jsonl"),
        "few": named("few.jsonl"),
        "windows": named("windows.jsonl"),
        "without tasks": named("alerts.jsonl", asked=True),
        "chats without tasks": named("chats.jsonl", asked=True),
        "plain": named("plain.txt"),
        "marked": named("marked.txt"),
        "cut finer": named("plain.txt", context_tokens=100_000),
        "short": named("short.txt"),
    }
    host, _ = open_store(built_store)
    script = Path(__file__).parents[1] / "support" / "edgetorch_script.py"
    done = run(
        torch_packages.command(script),
        environment=torch_packages.variables(host, data_path("builder")),
        stdin=json.dumps({"tokenizer": str(DEMO), "materials": list(wanted.values())}).encode(),
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    notes = [event["text"] for event in events if event["event"] == "note"]
    return dict(zip(wanted, events[-1]["result"]["answers"], strict=True)), notes


Told = tuple[dict[str, Any], list[str]]


def rows(told: Told, name: str) -> list[dict[str, Any]]:
    answer = told[0][name]
    return [*answer["training"], *answer["held_out"]]


def test_answers_are_learnt_in_the_form_of_a_chat(told: Told) -> None:
    first = next(row for row in rows(told, "alerts") if "battery 7 %" in row["asked"])
    assert first["asked"] == "<|user|>\nbattery 7 %<|end|>\n<|assistant|>\n"
    assert first["learnt"] == "Battery low, 7 %.<|end|>"


def test_of_a_chat_the_last_message_is_learnt(told: Told) -> None:
    first = next(row for row in rows(told, "chats") if "battery 7 %" in row["asked"])
    assert first["asked"] == "<|system|>\nBe brief.<|end|>\n<|user|>\nbattery 7 %<|end|>\n<|assistant|>\n"
    assert first["learnt"] == "Battery low, 7 %.<|end|>"


def test_of_a_text_everything_is_learnt(told: Told) -> None:
    assert {row["asked"] + row["learnt"] for row in rows(told, "texts")} == {
        f"wind {n} m/s<|end|>" for n in range(30)
    }
    assert {row["first"] for row in rows(told, "texts")} == {1}


def test_a_tenth_is_held_out(told: Told) -> None:
    for name, count in (("alerts", 40), ("chats", 20), ("texts", 30)):
        answer = told[0][name]
        held_out = {tuple(row["tokens"]) for row in answer["held_out"]}
        assert len(answer["held_out"]) == count // 10
        assert len(answer["training"]) == count - count // 10
        assert held_out.isdisjoint(tuple(row["tokens"]) for row in answer["training"])


def test_what_is_there_twice_counts_once(told: Told) -> None:
    assert told[0]["twice"] == told[0]["alerts"]


def test_how_an_editor_saves_a_text_makes_no_difference(told: Told) -> None:
    assert told[0]["windows"] == told[0]["alerts"]
    assert told[0]["marked"] == told[0]["plain"]


def test_tasks_are_not_learnt_by_heart(told: Told) -> None:
    for name, count in (("without tasks", 36), ("chats without tasks", 16)):
        asked = "".join(row["asked"] for row in rows(told, name))
        assert len(rows(told, name)) == count
        assert all(f"\nbattery {n} %" not in asked for n in range(3, 7))
    assert told[1].count("lines of the text that are tasks too, left out: 4") == 2


def test_a_line_longer_than_the_context_is_told(told: Told) -> None:
    assert told[0]["long"] == told[0]["alerts"]
    assert "lines of the text with more than 128 tokens, left out: 1" in told[1]


def test_plain_text_is_cut_and_its_end_held_out(told: Told) -> None:
    for name in ("plain", "cut finer"):
        answer = told[0][name]
        whole = "".join(row["asked"] + row["learnt"] for row in rows(told, name))
        # A token that is left over alone has nothing to be predicted from.
        assert PLAIN.startswith(whole)
        assert len(PLAIN) - len(whole) <= 1
        blocks = len(rows(told, name))
        assert len(answer["held_out"]) == max(1, blocks // 10)
        assert len({len(row["tokens"]) for row in answer["training"]}) == 1
    assert len(told[0]["plain"]["training"][0]["tokens"]) == 128
    assert len(rows(told, "cut finer")) in {10, 11}


def test_too_little_text(told: Told) -> None:
    assert "9 lines to use; at least 10 different ones" in told[0]["few"]["error"]
    assert "tokens; at least 512 are needed" in told[0]["short"]["error"]

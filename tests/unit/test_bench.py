"""Results of a bench: read, compared, kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgebuild.bench.baselines import Baselines
from edgebuild.bench.comparison import compare, differences, slowest
from edgebuild.bench.result import BenchResult, load_result, parse_result
from edgebuild.errors import ImageError, ToolError, UsageError

_FIGURES = ("first_token_s", "prompt_tokens_per_s", "generation_tokens_per_s", "total_tokens_per_s")


def result_document(**changes: Any) -> dict[str, Any]:
    """A result; changes by dotted key, with "/" for a figure's three values at once."""
    spread = {"median": 10.0, "least": 9.0, "greatest": 11.0}
    document: dict[str, Any] = {
        "schema_version": 1,
        "edgeserve": "0.1.0",
        "profile": "pi4",
        "is_traced": False,
        "model": {"name": "m", "description": "llama 1B Q4_K", "digests": ["sha256:" + "ab" * 32]},
        "engine": {
            "name": "llama.cpp", "cpu_variant": "armv8.0_1", "threads": 4, "slots": 1, "context_tokens": 2048,
            "batch_tokens": 128, "kv_type": "f16",
        },
        "machine": {"processor": "Raspberry Pi 4", "cores": 4, "memory_bytes": 4 << 30},
        "load": {"prompt_tokens": 256, "output_tokens": 128, "concurrency": 1, "repetitions": 5},
        "figures": {
            "load_s": 1.0, **{name: dict(spread) for name in _FIGURES},
            "peak_memory_bytes": 10**9, "anonymous_memory_bytes": 10**8,
            "energy": {"source": "board:VDD_IN", "joules": 100.0, "watts": 5.0, "joules_per_token": 0.5},
            "celsius_before": 40.0, "celsius_highest": 60.0,
        },
    }  # fmt: skip
    for key, value in changes.items():
        target = document
        *above, last = key.split("__")
        for part in above:
            target = target[part]
        target[last] = value
    return document


def _result(**changes: Any) -> BenchResult:
    return parse_result(json.dumps(result_document(**changes)), place="here")


def test_a_result_comes_back_as_it_was() -> None:
    result = _result()
    assert json.loads(result.document()) == result_document()
    untold = _result(figures__energy=None, figures__celsius_before=None, figures__celsius_highest=None)
    assert parse_result(untold.document(), place="here") == untold


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"more": 1}, "more"),
        ({"profile": 7}, "profile"),
        ({"profile": "a\nb"}, "profile"),
        ({"load__output_tokens": 1}, "load.output_tokens"),
        ({"figures__first_token_s__median": 0.0}, "figures.first_token_s.median"),
        ({"figures__prompt_tokens_per_s": None}, "figures.prompt_tokens_per_s"),
        ({"figures__load_s": float("nan")}, "figures.load_s"),
    ],
)
def test_what_is_no_result(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(ImageError, match=f"^here: not a result of `edgeserve bench --json`: {place}: "):
        _result(**changes)


@pytest.mark.parametrize("content", [b"", b"2026 info start", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_result(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="not a result"):
        load_result(path)


def test_a_file_that_is_gone_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        load_result(tmp_path / "gone.json")
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (1 << 21))
    with pytest.raises(ImageError, match="larger than any result"):
        load_result(large)


def test_slower_and_faster() -> None:
    after = _result(
        figures__first_token_s__median=12.0,
        figures__generation_tokens_per_s__median=7.0,
        figures__total_tokens_per_s__median=20.0,
        figures__peak_memory_bytes=2 * 10**9,
        figures__energy=None,
    )
    changes = {change.figure: change for change in compare(_result(), after)}
    assert changes["first_token_s"].slower_percent == pytest.approx(20)
    assert changes["generation_tokens_per_s"].slower_percent == pytest.approx(30)
    assert changes["total_tokens_per_s"].slower_percent == 0
    assert changes["total_tokens_per_s"].percent == pytest.approx(100)
    assert (changes["peak_memory_bytes"].percent, changes["peak_memory_bytes"].slower_percent) == (100, 0)
    assert (changes["joules_per_token"].after, changes["joules_per_token"].percent) == (None, None)
    assert slowest(tuple(changes.values())).figure == "generation_tokens_per_s"


@pytest.mark.parametrize(
    "changes",
    [{"load__prompt_tokens": 1}, {"load__output_tokens": 2}, {"load__concurrency": 2}, {"is_traced": True}],
)
def test_unlike_loads_are_not_compared(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot be compared"):
        compare(_result(), _result(**changes))


def test_what_else_is_not_the_same() -> None:
    after = _result(machine__processor="Raspberry Pi 5", engine__cpu_variant="armv8.2_2", edgeserve="0.2.0")
    assert differences(_result(), _result()) == ()
    assert differences(_result(), after) == (
        "edgeserve: was 0.1.0, is 0.2.0",
        "engine.cpu_variant: was armv8.0_1, is armv8.2_2",
        "machine.processor: was Raspberry Pi 4, is Raspberry Pi 5",
    )


def test_baselines_are_kept_by_kind(tmp_path: Path) -> None:
    baselines = Baselines(tmp_path / "baselines")
    result = _result()
    assert baselines.last(result) is None
    path = baselines.keep(result)
    assert path.name == "pi4-abababababab-llama.cpp-256+128x1.json"
    assert baselines.last(result) == result
    other = _result(load__concurrency=4)
    assert baselines.last(other) is None
    newer = _result(figures__load_s=2.0)
    assert baselines.keep(newer) == path
    assert baselines.last(result) == newer
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_no_name_leaves_the_folder(tmp_path: Path) -> None:
    result = _result(profile="../../etc", model__digests=["sha256:../../../x"], engine__name="a/b")
    assert Baselines(tmp_path).keep(result).parent == tmp_path


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolError, match="cannot be written"):
        Baselines(tmp_path / "file").keep(_result())


def test_models_that_share_a_file_are_two() -> None:
    shared, own = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
    names = {
        _result(model__digests=digests).baseline_name
        for digests in ([shared], [shared, shared], [shared, own], [own, shared])
    }
    assert len(names) == 4

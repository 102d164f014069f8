"""`edgebuild bench`: a real image measured on this machine, and results brought from devices."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.built import Built, Edgebuild, assert_refused

_SHORT = ("--prompt", "32", "--output", "16", "--repetitions", "2")


def _slowed(document: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same result on a device that is `factor` times slower."""
    for name, spread in document["figures"].items():
        if isinstance(spread, dict) and "median" in spread:
            scale = factor if name == "first_token_s" else 1 / factor
            document["figures"][name] = {key: value * scale for key, value in spread.items()}
    return document


def test_an_image_measures_itself(edgebuild: Edgebuild, built_layout: Built) -> None:
    document = edgebuild.json("bench", built_layout.layout, *_SHORT)
    result = document["result"]
    assert (result["profile"], result["model"]["name"]) == ("x86", "edge-alert-4m")
    assert result["model"]["digests"] == [built_layout.image("x86")["layers"][0]["diff_id"]]
    assert result["load"] == {"prompt_tokens": 32, "output_tokens": 16, "concurrency": 1, "repetitions": 2}
    assert result["figures"]["generation_tokens_per_s"]["median"] > 0
    assert (document["changes"], document["not_the_same"]) == ([], [])
    kept = Path(document["kept"])
    assert kept.parent == edgebuild.folder / "baselines"
    assert json.loads(kept.read_text()) == result
    # What was kept compares with another run, and with itself as a file.
    again = edgebuild.run(
        "bench", built_layout.layout, *_SHORT, "--compare", "last", "--slower", "100000", "--no-keep"
    )
    assert "before" in again.stdout
    assert json.loads(kept.read_text()) == result


def test_an_image_for_another_architecture(edgebuild: Edgebuild, built_layout: Built) -> None:
    refused = edgebuild.run("bench", built_layout.layout, "--profile", "pi4", check=False)
    assert_refused(refused, 6, "pi4 is for linux/arm64, this machine is linux/amd64")
    assert "--from result.json" in refused.stderr
    assert_refused(edgebuild.run("bench", built_layout.layout, "--profile", "pi5", check=False), 6, "pi5")


@pytest.mark.slow
def test_what_the_image_refuses_is_told(edgebuild: Edgebuild, built_layout: Built) -> None:
    refused = edgebuild.run("bench", built_layout.layout, "--concurrency", "60", check=False)
    assert_refused(refused, 6, "need as many slots")


@pytest.mark.slow
def test_a_result_from_a_device(edgebuild: Edgebuild, built_layout: Built) -> None:
    result = edgebuild.json("bench", built_layout.layout, *_SHORT, "--no-keep")["result"]
    first, second = edgebuild.folder / "first.json", edgebuild.folder / "second.json"
    first.write_text(json.dumps(result))
    second.write_text(json.dumps(_slowed(json.loads(first.read_text()), 1.5)))
    edgebuild.run("bench", "--from", first)
    # It is not kept: the second time it is compared with the good one again.
    for _ in range(2):
        slower = edgebuild.run("bench", "--from", second, "--compare", "last", check=False)
        assert slower.returncode == 6
        assert "-33.3 %" in slower.stdout
        assert "50.0 % slower than before" in slower.stderr
    allowed = edgebuild.json("bench", "--from", second, "--compare", first, "--slower", "60")
    change = next(one for one in allowed["changes"] if one["figure"] == "generation_tokens_per_s")
    assert round(change["slower_percent"]) == 33
    faster = edgebuild.run("bench", "--from", first, "--compare", "last")
    assert "+50.0 %" in faster.stdout


@pytest.mark.slow
def test_nothing_to_compare_with_is_told(edgebuild: Edgebuild, built_layout: Built) -> None:
    result = edgebuild.json("bench", built_layout.layout, *_SHORT, "--no-keep")
    assert result["kept"] is None
    file = edgebuild.folder / "one.json"
    file.write_text(json.dumps(result["result"]))
    assert "nothing to compare with" in edgebuild.run("bench", "--from", file, "--compare", "last").stdout


def test_arguments_that_make_no_sense(edgebuild: Edgebuild) -> None:
    assert_refused(edgebuild.run("bench", check=False), 2, "either LAYOUT or --from FILE")
    assert_refused(edgebuild.run("bench", "layout", "--from", "x.json", check=False), 2, "either LAYOUT")
    assert_refused(edgebuild.run("bench", "layout", "--output", "1", check=False), 2)
    assert_refused(edgebuild.run("bench", "layout", check=False), 6, "no such layout")
    assert_refused(edgebuild.run("bench", "--from", "gone.json", check=False), 6, "gone.json: cannot be read")
    (edgebuild.folder / "text").write_text("info start\n")
    assert_refused(
        edgebuild.run("bench", "--from", "text", check=False), 6, "not a result of `edgeserve bench"
    )

"""`--quantization auto` from the command line: what it shows, what it takes, and that the image holds it."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgebuild.fit import make_fit
from edgebuild.gguf import read_gguf_header
from edgebuild.model_spec import ModelSpec, estimate_quantized, make_model_spec
from edgebuild.profile import load_profile
from tests.support.built import Edgebuild, assert_refused, config_files

PROFILE = """\
extends: x86
schema_version: 1
name: tight
memory: {memory}
reserve: 0%
context: 1024
quantization: auto
auto:
  kv_types: [f16, q8_0]
  context: {{least: 512}}
"""


@pytest.fixture
def demo_spec(demo_model: Path) -> ModelSpec:
    return make_model_spec(read_gguf_header(demo_model), file_name=demo_model.name)


def write_profile(folder: Path, memory: int) -> Path:
    path = folder / "tight.yaml"
    path.write_text(PROFILE.format(memory=memory))
    return path


def need(folder: Path, spec: ModelSpec, quantization: str, **choice: Any) -> int:
    profile = load_profile(str(write_profile(folder, 1 << 30)), working_directory=folder)
    return make_fit(estimate_quantized(spec, quantization), profile, is_estimate=True, **choice).need_bytes


def test_fit_shows_every_candidate_and_marks_the_one_taken(
    edgebuild: Edgebuild, demo_model: Path, demo_spec: ModelSpec
) -> None:
    write_profile(edgebuild.folder, need(edgebuild.folder, demo_spec, "Q8_0", kv_type="q8_0"))
    document = edgebuild.json("fit", "--profile", "./tight.yaml", "--model", demo_model)
    (fit,) = document["fits"]
    assert (fit["quantization"], fit["kv_type"], fit["context_tokens"]) == ("Q8_0", "q8_0", 1024)
    taken = [one for one in fit["candidates"] if one["is_taken"]]
    assert [(one["quantization"], one["kv_type"]) for one in taken] == [("Q8_0", "q8_0")]
    better = fit["candidates"][: fit["candidates"].index(taken[0])]
    assert {"F16", "Q8_0"} == {one["quantization"] for one in better}
    assert all("of memory, tight leaves" in one["refusal"] for one in better)
    shown = edgebuild.run("fit", "--profile", "./tight.yaml", "--model", demo_model).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("▸")]
    assert line.split()[1:4] == ["Q8_0", "q8_0", "1024"]
    assert "refused: needs" in shown


def test_the_image_holds_what_was_chosen(
    edgebuild: Edgebuild, demo_model: Path, demo_spec: ModelSpec, built_lock: Path
) -> None:
    memory = need(edgebuild.folder, demo_spec, "Q6_K", kv_type="q8_0", context_tokens=1024)
    write_profile(edgebuild.folder, memory)
    done = edgebuild.run(
        "image", "--profile", "./tight.yaml", "--model", demo_model, "--lock", built_lock, "--locked", "--no-test",
        "--json", "--output", "out",
    )  # fmt: skip
    (image,) = json.loads(done.stdout)["images"]
    fit = image["fit"]
    assert (fit["quantization"], fit["kv_type"], fit["context_tokens"]) == ("Q6_K", "q8_0", 1024)
    assert (fit["is_estimate"], fit["fits"], fit["need_bytes"]) == (False, True, memory)
    assert "▸  Q6_K" in done.stderr
    assert "the cache is q8_0, not f16" in done.stderr
    runtime = json.loads(config_files(edgebuild.folder / "out", image)["etc/edgebuild/runtime.json"])
    assert (runtime["engine"]["kv_type"], runtime["engine"]["context_tokens"]) == ("q8_0", 1024)
    assert runtime["memory"]["need_bytes"] == memory


def test_what_cannot_fit_is_refused_with_what_came_nearest(edgebuild: Edgebuild, demo_model: Path) -> None:
    write_profile(edgebuild.folder, 30 << 20)
    said = "candidates fits; the nearest, Q2_K with a cache of q8_0 for 512 tokens"
    argv = ("--profile", "./tight.yaml", "--model", demo_model)
    assert_refused(edgebuild.run("image", *argv, check=False), 4, said)
    fit = edgebuild.run("fit", *argv, check=False)
    assert fit.returncode == 4
    assert said in fit.stderr
    assert "refused: needs" in fit.stdout
    assert not (edgebuild.folder / "build").exists()


def test_types_that_need_a_matrix_are_sized_with_one(edgebuild: Edgebuild, demo_model: Path) -> None:
    argv = ("fit", "--profile", "pi4", "--model", demo_model, "--quantization", "IQ2_XS")
    (fit,) = edgebuild.json(*argv, "--imatrix", "auto")["fits"]
    assert (fit["quantization"], fit["fits"]) == ("IQ2_XS", True)
    (edgebuild.folder / "none.gguf").write_bytes(b"nothing")
    assert_refused(edgebuild.run(*argv, "--imatrix", "none.gguf", check=False), 4, "none.gguf")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("Q4_KM", "did you mean Q4_K_M?"),
        ("IQ2_XS", "without an importance matrix"),
    ],
)
def test_types_that_cannot_be_had(edgebuild: Edgebuild, demo_model: Path, given: str, said: str) -> None:
    done = edgebuild.run(
        "fit", "--profile", "pi4", "--model", demo_model, "--quantization", given, check=False
    )
    assert_refused(done, 4 if "matrix" in said else 2, said)

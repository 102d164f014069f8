"""Importance matrices: computed as llama.cpp computes them, used, recorded, and refused where there is nothing to use them for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader

from tests.support.built import Edgebuild, assert_refused, config_files
from tests.support.tiny_gguf import EXPERTS_USED, write_tiny_gguf

TEXT = " ".join(
    f"Robot {number * 31 % 97} sees {number} obstacles, battery {number % 89} %." for number in range(90)
)
EPSILON = 1e-5
# Of no other model in the store that all tests share.
CHUNK_TOKENS, EXPERTS_CHUNK_TOKENS = 192, 160


@pytest.fixture
def ours(edgebuild: Edgebuild, built_lock: Path) -> Edgebuild:
    """The command, in a folder with the tests' lock and a text."""
    (edgebuild.folder / "edgebuild.lock").write_bytes(built_lock.read_bytes())
    (edgebuild.folder / "text.txt").write_text(TEXT, "utf-8")
    return edgebuild


def test_sums_are_those_of_the_definition(ours: Edgebuild, built_store: Path) -> None:
    """Of the first layer they can be told without computing the model: norm of the tokens' embeddings, squared."""
    model = write_tiny_gguf(ours.folder / "imatrix-tiny.F32.gguf", dtype="f32", context_tokens=CHUNK_TOKENS)
    text = ("--eval-text", "text.txt", "--calibration", "text.txt")
    document = ours.json("model", "eval", model, "--types", "IQ2_XXS", "--imatrix", "auto", *text)
    assert [one["quantization"] for one in document["types"]] == ["F32", "IQ2_XXS"]
    matrix = _tensors(_matrix(built_store, lambda reader: _chunk_size(reader) == CHUNK_TOKENS))
    tokens = _tokens(built_store)
    weights = _tensors(model)
    embedded = weights["token_embd.weight"][tokens].astype(np.float64)
    scale = np.sqrt((embedded**2).mean(axis=1, keepdims=True) + EPSILON)
    expected = ((embedded / scale * weights["blk.0.attn_norm.weight"]) ** 2).sum(axis=0)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        np.testing.assert_allclose(matrix[f"{name}.in_sum2"].ravel(), expected, rtol=1e-3)
        assert matrix[f"{name}.counts"].ravel().tolist() == [len(tokens)]
    assert {f"blk.{layer}.ffn_down.weight.in_sum2" for layer in range(2)} <= set(matrix)


def test_experts_have_sums_of_their_own(ours: Edgebuild, built_store: Path) -> None:
    """What chooses the experts and what goes into them is the same, so the sums of all experts are known."""
    model = write_tiny_gguf(
        ours.folder / "imatrix-experts.F32.gguf", dtype="f32", context_tokens=EXPERTS_CHUNK_TOKENS, experts=4
    )
    text = ("--eval-text", "text.txt", "--calibration", "text.txt")
    document = ours.json("model", "eval", model, "--types", "IQ2_XXS", "--imatrix", "auto", *text)
    assert document["types"][1]["text"]["divergence"]["kl_divergence"] > 0
    matrix = _tensors(_matrix(built_store, lambda reader: _chunk_size(reader) == EXPERTS_CHUNK_TOKENS))
    for layer in range(2):
        chosen = matrix[f"blk.{layer}.ffn_gate_inp.weight.in_sum2"].ravel()
        (tokens,) = matrix[f"blk.{layer}.ffn_gate_inp.weight.counts"].ravel()
        for name in ("gate", "up"):
            sums = matrix[f"blk.{layer}.ffn_{name}_exps.weight.in_sum2"]
            assert sums.shape == (4, 256)
            np.testing.assert_allclose(sums.sum(axis=0), EXPERTS_USED * chosen, rtol=1e-4)
        counts = matrix[f"blk.{layer}.ffn_down_exps.weight.counts"].ravel()
        assert counts.sum() == EXPERTS_USED * tokens
        assert (counts > 0).sum() > 1


def test_recorded_in_the_image(ours: Edgebuild) -> None:
    build = ("image", "--profile", "x86", "--no-test", "--quantization", "Q3_K_S")
    plain = ours.json(*build)["images"][0]
    weighted = ours.json(*build, "--imatrix", "auto", "--output", "weighted")["images"][0]
    assert weighted["layers"][0]["digest"] != plain["layers"][0]["digest"]
    card, readme = _card(ours.folder / "weighted", weighted)
    assert card["source"]["importance_matrix"]["name"] == "auto"
    assert card["source"]["importance_matrix"]["digest"].startswith("sha256:")
    assert card["source"]["importance_matrix"]["calibration"] == "heldout.jsonl, from line 501"
    assert "importance matrix auto" in readme
    config = ours.folder / "weighted/blobs" / weighted["config_digest"].replace(":", "/")
    labels = json.loads(config.read_bytes())["config"]["Labels"]
    digest = card["source"]["importance_matrix"]["digest"]
    assert labels["dev.edgebuild.model.importance_matrix"] == digest
    assert _card(ours.folder / "build", plain)[0]["source"]["importance_matrix"] is None


@pytest.mark.slow
def test_a_file_gives_what_auto_gave(ours: Edgebuild, built_store: Path) -> None:
    options = ("model", "eval", "--types", "Q3_K_S", "--eval-tokens", "1024")
    auto = ours.json(*options, "--imatrix", "auto")["types"][1]
    demo = _matrix(built_store, lambda reader: any(t.name.startswith("blk.5.") for t in reader.tensors))
    given = ours.json(*options, "--imatrix", demo)["types"][1]
    assert given["text"]["perplexity"] == auto["text"]["perplexity"]
    assert given["text"]["divergence"] == auto["text"]["divergence"]
    assert ours.json(*options)["types"][1]["text"]["divergence"] != auto["text"]["divergence"]


def test_refused(ours: Edgebuild) -> None:
    (ours.folder / "matrix.dat").write_bytes(b"no matrix at all")
    image = ("image", "--profile", "x86", "--no-test")
    cases: tuple[tuple[tuple[str, ...], int, str], ...] = (
        ((*image, "--imatrix", "nowhere.dat"), 4, "nowhere.dat"),
        ((*image, "--imatrix", "matrix.dat"), 4, "matrix.dat"),
        ((*image, "--calibration", "text.txt"), 2, "--imatrix auto"),
        ((*image, "--quantization", "IQ2_XS"), 4, "importance matrix"),
        (("model", "eval", "--types", "IQ2_XS"), 2, "IQ2_XS"),
    )
    for options, code, part in cases:
        assert_refused(ours.run(*options, check=False), code, part)
    assert not (ours.folder / "build").exists()


def _matrix(store: Path, is_it: Callable[[GGUFReader], bool]) -> Path:
    found = [path for path in (store / "v1/evaluation").glob("*/matrix.gguf") if is_it(GGUFReader(path))]
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def _chunk_size(reader: GGUFReader) -> int:
    return int(reader.fields["imatrix.chunk_size"].contents())


def _tokens(store: Path) -> list[int]:
    """Find the text's tokens as they were read for the perplexity."""
    found = [
        (path.stat().st_mtime_ns, [token for chunk in chunks for token in chunk["tokens"]])
        for path in (store / "v1/evaluation").glob("*/reference.json")
        if len((chunks := json.loads(path.read_text("ascii"))["chunks"])[0]["tokens"]) == CHUNK_TOKENS
    ]
    return max(found)[1]


def _tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


def _card(layout: Path, image: dict[str, Any]) -> tuple[dict[str, Any], str]:
    files = config_files(layout, image)
    return json.loads(files["etc/edgebuild/model.json"]), files["etc/edgebuild/README.md"].decode()

"""`edgebuild image` of a model that embeds texts, as a user runs it: the smoke test asks for a vector; what is for text is refused."""

import math
from pathlib import Path

from gguf import GGUFReader

from tests.support.built import Edgebuild, assert_refused
from tests.support.tiny_embedder import DIM, write_tiny_bert


def test_an_image_that_embeds_texts(edgebuild: Edgebuild, built_lock: Path) -> None:
    model = write_tiny_bert(edgebuild.folder / "tiny-bert.gguf")
    common = ("--profile", "x86", "--quantization", "F32", "--model", model, "--lock", built_lock)
    document = edgebuild.json("image", *common, "--output", "layout", timeout_s=1800)
    (image,) = document["images"]
    assert (image["smoke"]["vector_length"], image["smoke"]["answer"]) == (DIM, f"a vector of {DIM} numbers")
    # The model was trained for no more.
    assert (image["fit"]["quantization"], image["fit"]["context_tokens"]) == ("F32", 128)

    done = edgebuild.run("bench", "layout", check=False)
    assert_refused(done, 6, "x86: its model embeds texts", "bench measures how fast text is generated")
    done = edgebuild.run("model", "eval", model, "--lock", built_lock, check=False)
    assert_refused(done, 2, "model eval: tiny-bert embeds texts")


def test_a_model_whose_vectors_are_none_is_not_let_out(edgebuild: Edgebuild, built_lock: Path) -> None:
    model = write_tiny_bert(edgebuild.folder / "tiny-bert.gguf")
    weights = {tensor.name: tensor.data for tensor in GGUFReader(model, "r+").tensors}
    weights["token_embd_norm.weight"][:] = math.nan
    done = edgebuild.run(
        "image", "--profile", "x86", "--quantization", "F32", "--model", model, "--lock", built_lock,
        "--output", "layout", check=False, timeout_s=1800,
    )  # fmt: skip
    assert_refused(done, 6, "before it was ready", "the first forward pass failed")
    assert not (edgebuild.folder / "layout" / "index.json").exists()

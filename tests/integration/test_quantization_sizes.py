"""What planning computes of a quantised model is what llama.cpp makes: every tensor's type and the file's size."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError, PlanError
from edgebuild.gguf import read_gguf_header
from edgebuild.gguf_types import FILE_TYPES
from edgebuild.host import make_host
from edgebuild.model.quantize import quantize
from edgebuild.model.source import ModelFile
from edgebuild.model_spec import ModelSpec, estimate_quantized, make_model_spec
from edgebuild.oci.digest import Digest
from edgebuild.plan import ModelSource
from edgebuild.progress import SilentProgress
from edgebuild.quantization import QUANTIZATIONS, needs_matrix
from tests.support.peers.tool import run
from tests.support.tiny_gguf import write_tiny_gguf

NUMBERS = {name: number for number, name in FILE_TYPES.items()}
DRY_QUANTIZE = Path(__file__).parents[1] / "support/dry_quantize.py"


def write_shapes(path: Path, *, architecture: str, layers: int, dim: int, ff: int, experts: int = 0) -> Path:
    """Write a model without a tokenizer whose weights are all 0; what is asked of it depends on its shapes alone."""
    writer = GGUFWriter(str(path), architecture)
    writer.add_file_type(1)
    writer.add_context_length(512)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(ff)
    writer.add_block_count(layers)
    writer.add_head_count(dim // 32)
    writer.add_head_count_kv(max(1, dim // 128))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(300)
    writer.add_token_list([f"t{number}" for number in range(300)])
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    stack = (experts,) if experts else ()
    suffix = "_exps" if experts else ""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (300, dim), "output.weight": (300, dim)}
    for layer in range(layers):
        block = f"blk.{layer}"
        values = (
            {f"{block}.attn_qkv.weight": (2 * dim, dim)}
            if architecture == "falcon"
            else {f"{block}.attn_{part}.weight": (dim, dim) for part in "qkv"}
        )
        shapes |= values | {
            f"{block}.attn_output.weight": (dim, dim),
            f"{block}.ffn_up{suffix}.weight": (*stack, ff, dim),
            f"{block}.ffn_down{suffix}.weight": (*stack, dim, ff),
            f"{block}.ffn_gate{suffix}.weight": (*stack, ff, dim),
        }
        if experts:
            shapes[f"{block}.ffn_gate_inp.weight"] = (experts, dim)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_answers(model: Path, library: Path) -> Mapping[str, Mapping[str, str] | None]:
    environment = {"PYTHONPATH": os.fspath(library), "PATH": os.environ["PATH"]}
    argv: list[str | Path] = [sys.executable, "-P", "-B", DRY_QUANTIZE, model]
    argv += [str(NUMBERS[name]) for name in QUANTIZATIONS]
    answers: Mapping[str, Mapping[str, str] | None] = json.loads(run(argv, env=environment).stdout)
    return answers


def our_answer(model: ModelSpec, name: str, *, has_matrix: bool) -> Mapping[str, str] | None:
    try:
        made = estimate_quantized(model, name, has_matrix=has_matrix)
    except PlanError:
        return None
    return {
        after.name: after.type
        for before, after in zip(model.tensors, made.tensors, strict=True)
        if before.type != after.type
    }


# Layers: a first and a last eighth, and those between. Rows of 192 are divided by no block of 256, and those of 576 by
# none in the feed-forward layer alone; rows of 80 not even by 32.
@pytest.mark.parametrize(
    ("architecture", "layers", "dim", "ff", "experts"),
    [
        ("llama", 17, 512, 512, 0),
        ("llama", 8, 256, 576, 0),
        ("llama", 3, 192, 80, 0),
        ("llama", 80, 256, 256, 0),
        ("llama", 9, 256, 256, 8),
        ("llama", 9, 256, 256, 4),
        ("falcon", 16, 256, 256, 0),
    ],
)
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(
    architecture: str, layers: int, dim: int, ff: int, experts: int, tmp_path: Path, llama_host: Path
) -> None:
    path = write_shapes(
        tmp_path / "m.gguf", architecture=architecture, layers=layers, dim=dim, ff=ff, experts=experts
    )
    model = make_model_spec(read_gguf_header(path), file_name=path.name)
    answers = llama_answers(path, llama_host)
    assert len(answers) == 2 * len(QUANTIZATIONS)
    for name in QUANTIZATIONS:
        for has_matrix in (False, True):
            expected = answers[f"{NUMBERS[name]}{'+matrix' if has_matrix else ''}"]
            assert our_answer(model, name, has_matrix=has_matrix) == expected, (name, has_matrix)


class Worker:
    """Quantises as a build does, into a store of its own."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._folder = folder
        self._library = library
        self._store = Store(folder / "store", progress=SilentProgress())
        self._host = make_host(
            environment={}, working_directory=folder, cpu_count=1, now_s=0, cache=folder / "store"
        )
        path = write_tiny_gguf(folder / "tiny.gguf", ff=576, layers=9, kv_heads=1)
        self.model = ModelFile(
            path=path,
            spec=make_model_spec(read_gguf_header(path), file_name=path.name),
            source=ModelSource(kind="file", reference=path.name, file=path.name),
        )

    def quantize(self, name: str) -> ModelSpec:
        made = quantize(
            self.model,
            name,
            library=lambda: self._library,
            library_source=Digest.of(b"library"),
            store=self._store,
            host=self._host,
            progress=SilentProgress(),
        )
        return made.spec


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, llama_host: Path) -> Worker:
    return Worker(tmp_path_factory.mktemp("sizes"), llama_host)


@pytest.mark.parametrize(
    "name", ["F32", "BF16", "Q8_0", "Q4_K_M", "Q5_1", "IQ4_XS", "IQ3_M", "TQ1_0", "Q2_K"]
)
def test_sizes_are_computed_to_the_byte(worker: Worker, name: str) -> None:
    expected, made = estimate_quantized(worker.model.spec, name), worker.quantize(name)
    assert made.quantization == name
    # llama.cpp writes them in an order of its own.
    assert set(made.tensors) == set(expected.tensors)
    assert made.file_bytes == expected.file_bytes


# A model is never made what it is already.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in QUANTIZATIONS if name != "F16"])
def test_every_type_is_made_or_refused_for_its_matrix(worker: Worker, name: str) -> None:
    if needs_matrix(name):
        with pytest.raises(ModelError, match="matrix"):
            worker.quantize(name)
    elif name == "Q1_0":
        # Rows of 576, which its blocks of 128 do not divide.
        with pytest.raises(ModelError, match="fallback"):
            worker.quantize(name)
    else:
        assert worker.quantize(name).file_bytes == estimate_quantized(worker.model.spec, name).file_bytes

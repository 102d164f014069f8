"""Models that embed texts: how they are known, what is planned for them, and what is refused, before anything is built."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import PoolingType

from edgebuild.choice import make_selection, make_versions
from edgebuild.contents import BakedFile, make_contents
from edgebuild.errors import ModelError, UsageError
from edgebuild.fit import make_fit
from edgebuild.gates import QualityGates
from edgebuild.gguf import read_gguf_header
from edgebuild.judging import verify_generates, verify_measurable
from edgebuild.memory import Workload, kv_cache_bytes, output_bytes
from edgebuild.model.source import FoundModel, ModelFile
from edgebuild.model_spec import Embedder, ModelSpec, make_model_spec
from edgebuild.oci.digest import Digest
from edgebuild.plan import BuildPlan, ModelOrigin, ModelSource, make_labels, make_plan, notes
from edgebuild.profile import DeviceProfile, load_profile
from edgebuild.request import EvaluationRequest, ImageRequest, ImportanceRequest, LockOptions
from edgeserve.config import load_config
from tests.support.specs import llama_spec
from tests.support.tiny_embedder import DIM, write_tiny_bert
from tests.support.tiny_gguf import write_tiny_gguf

SOURCE = ModelSource(kind="file", reference="bert.gguf", file="bert.gguf")
ORIGIN = ModelOrigin(source=SOURCE, source_quantization="F32", quantized_by="")
FILE = BakedFile(path="/models/b.gguf", size_bytes=1, diff_id=Digest.of(b"model"), before=b"", after=b"")


def spec_of(path: Path) -> ModelSpec:
    return make_model_spec(read_gguf_header(path), file_name=path.name)


@pytest.fixture
def bert(tmp_path: Path) -> ModelSpec:
    return spec_of(write_tiny_bert(tmp_path / "bert.gguf", context_tokens=2048))


def profile(name: str = "pi4", **changes: object) -> DeviceProfile:
    return load_profile(name, working_directory=Path("/")).model_copy(update=changes)


def plan_of(spec: ModelSpec, device: DeviceProfile) -> BuildPlan:
    return make_plan(device, spec, ORIGIN, epoch_s=0)


@pytest.mark.parametrize(
    ("pooling", "name"),
    [(PoolingType.MEAN, "mean"), (PoolingType.CLS, "cls"), (PoolingType.LAST, "last")],
)
def test_the_header_says_what_embeds(tmp_path: Path, pooling: PoolingType, name: str) -> None:
    bert = spec_of(write_tiny_bert(tmp_path / "b.gguf", pooling=pooling))
    llama = spec_of(write_tiny_gguf(tmp_path / "l.gguf", pooling=pooling))
    assert bert.embedder == Embedder(pooling=name, vector_length=DIM)
    assert llama.embedder == Embedder(pooling=name, vector_length=256)
    assert (bert.is_encoder, llama.is_encoder) == (True, False)
    assert llama_spec().embedder is None


@pytest.mark.parametrize(
    ("pooling", "what"), [(PoolingType.RANK, "it ranks texts"), (None, "it generates no text")]
)
def test_what_neither_generates_nor_embeds_is_no_model(
    tmp_path: Path, pooling: PoolingType | None, what: str
) -> None:
    with pytest.raises(ModelError, match=rf"b\.gguf: {what}"):
        spec_of(write_tiny_bert(tmp_path / "b.gguf", pooling=pooling))


def test_texts_are_as_long_as_usual_ones_or_as_the_batch(bert: ModelSpec) -> None:
    # A step of pi4 has 128 tokens, the context 2048.
    assert make_fit(bert, profile(), is_estimate=False).context_tokens == 512
    assert make_fit(bert, profile(context=256), is_estimate=False).context_tokens == 256
    assert make_fit(bert, profile(batch=1024), is_estimate=False).context_tokens == 1024
    short = replace(bert, context_trained=300)
    assert make_fit(short, profile(batch=1024), is_estimate=False).context_tokens == 300
    said = notes(plan_of(bert, profile()))
    assert any("texts have up to 512 tokens, not 2048" in note and "batch" in note for note in said)
    assert any("context is 300 tokens, not 2048" in note for note in notes(plan_of(short, profile())))


def test_memory_of_an_encoder_and_of_a_decoder(tmp_path: Path, bert: ModelSpec) -> None:
    work = Workload(
        context_tokens=512, slots=2, batch_tokens=128, kv_type="f16", flash_attention=True, whole_texts=True
    )
    llama = spec_of(write_tiny_gguf(tmp_path / "l.gguf", pooling=PoolingType.LAST))
    # Room for logits and a vector of each token of a text, in 32 bit.
    assert output_bytes(bert, work) == 512 * (bert.vocabulary + DIM) * 4
    assert kv_cache_bytes(bert, work) == 0
    # One cache for all requests: 2 layers of 2 heads of 64, keys and values in 16 bit.
    assert kv_cache_bytes(llama, work) == 512 * 2 * 2 * (64 + 64) * 2
    rows = {row.what: row for row in make_fit(bert, profile(), is_estimate=False).rows}
    assert "KV cache" not in rows
    assert rows["output"].size_bytes == output_bytes(bert, work)


def test_an_encoder_has_no_type_of_cache_to_choose(bert: ModelSpec) -> None:
    device = load_profile("pi4", working_directory=Path("/"))
    device = device.model_copy(
        update={
            "quantization": "auto",
            "auto": device.auto.model_copy(update={"kv_types": ("f16", "q8_0")}),
        }
    )
    for spec, kinds in ((bert, {"f16"}), (llama_spec(), {"f16", "q8_0"})):
        versions = make_versions(spec, (device,), override=None)
        selection = make_selection(spec, device, versions=versions, override=None)
        assert {candidate.choice.kv_type for candidate in selection.candidates} == kinds
        assert selection.chosen is not None


def test_what_the_image_says_of_it(bert: ModelSpec, tmp_path: Path) -> None:
    device = profile(server=profile().server.model_copy(update={"grpc": True}))
    plan = plan_of(bert, device)
    contents = make_contents(plan, (FILE,))
    (tmp_path / "runtime.json").write_bytes(contents["etc/edgebuild/runtime.json"])
    runtime = load_config({"EDGE_RUNTIME": str(tmp_path / "runtime.json")}, {})
    # A text fills a pass, and needs no room for an answer.
    assert (runtime.engine.context_tokens, runtime.engine.batch_tokens) == (512, 512)
    assert runtime.server.limits.prompt_tokens == 512
    card = json.loads(contents["etc/edgebuild/model.json"])
    assert card["embeds"] == {"pooling": "mean", "vector_length": DIM}
    readme = contents["etc/edgebuild/README.md"].decode()
    assert "POST /v1/embeddings" in readme
    assert "| Texts | up to 512 tokens each; requests at a time: 1 |" in readme
    assert f"| Vectors | {DIM} numbers, of length 1 (mean of the tokens' vectors) |" in readme
    labels = make_labels(plan, model_digest=Digest.of(b"model"))
    assert labels["dev.edgebuild.model.vector_length"] == str(DIM)
    assert any("no gRPC method" in note for note in notes(plan))
    chat = plan_of(replace(llama_spec(), quantization="Q4_K_M", file_bytes=2**29), profile())
    assert json.loads(make_contents(chat, (FILE,))["etc/edgebuild/model.json"])["embeds"] is None
    assert "dev.edgebuild.model.vector_length" not in make_labels(chat, model_digest=Digest.of(b"model"))


def _request(spec: ModelSpec, device: DeviceProfile, folder: Path, **changes: object) -> ImageRequest:
    model = ModelFile(path=folder / "b.gguf", spec=spec, source=SOURCE)
    found = FoundModel(spec=spec, place="b.gguf", is_demo=False, load=lambda: model)
    measured = EvaluationRequest(is_wanted=False, text=None, tasks=None, most_tokens=0, gates=QualityGates())
    request = ImageRequest(
        profiles=(device,), model=found, quantization=None, shard_bytes=0, output=None, references=(), push=False,
        lock=LockOptions(path=folder / "lock", locked=False, update=False, mirrors=()), is_tested=False,
        licence_required=False, evaluation=measured, key=None, key_name="", engine="auto",
    )  # fmt: skip
    return replace(request, **changes)  # type: ignore[arg-type]


def test_only_what_generates_text_is_measured(bert: ModelSpec, tmp_path: Path) -> None:
    gated = profile(gates=QualityGates(kl_divergence=0.05))  # type: ignore[arg-type]
    wanted = EvaluationRequest(is_wanted=True, text=None, tasks=None, most_tokens=0, gates=QualityGates())
    computed = ImportanceRequest(matrix=None, text=None)
    for request, what in (
        (_request(bert, gated, tmp_path), "gates of pi4"),
        (_request(bert, profile(), tmp_path, evaluation=wanted), "--eval"),
        (_request(bert, profile(), tmp_path, importance=computed), "--imatrix auto"),
    ):
        with pytest.raises(UsageError, match=rf"^{what}: tiny-bert embeds texts"):
            verify_measurable(request)
    verify_measurable(_request(bert, profile(), tmp_path))
    verify_generates(llama_spec(), "model eval")

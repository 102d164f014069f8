"""Sizing and planning: the arithmetic is right, what does not fit is refused, the same input gives the same plan."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.contents import BakedFile, make_contents
from edgebuild.errors import ModelError, PlanError
from edgebuild.fit import Fit, FitRow, format_bytes, make_fit, verify_fit
from edgebuild.gguf import GgufHeader, Tensor
from edgebuild.memory import SERVER_BYTES, Workload, copied_bytes, kv_cache_bytes, state_bytes
from edgebuild.model_spec import ModelSpec, estimate_quantized, make_model_spec, quantized_file_name, slug
from edgebuild.oci.digest import Digest
from edgebuild.plan import ModelOrigin, ModelSource, make_labels, make_plan, make_run, notes
from edgebuild.profile import DeviceProfile, load_profile
from tests.support.specs import llama_spec

LLAMA = llama_spec()
ORIGIN = ModelOrigin(
    source=ModelSource(kind="file", reference="x.gguf", file="x.gguf"),
    source_quantization="F16",
    quantized_by="llama_model_quantize Q4_K_M",
)
GIB, MIB = 2**30, 2**20


def profile(name: str = "pi4", **changes: object) -> DeviceProfile:
    return load_profile(name, working_directory=Path("/")).model_copy(update=changes)


def work(**changes: object) -> Workload:
    base: dict[str, object] = {
        "context_tokens": 2048, "slots": 1, "batch_tokens": 256, "kv_type": "f16", "flash_attention": True,
    }  # fmt: skip
    return Workload(**base | changes)  # type: ignore[arg-type]


def test_kv_cache_of_a_known_model() -> None:
    # 2048 tokens × 16 layers × 8 heads × (64 + 64) × 2 bytes = 64 MiB, as llama.cpp reports it.
    assert kv_cache_bytes(LLAMA, work()) == 64 * MIB
    assert kv_cache_bytes(LLAMA, work(slots=3)) == 3 * 64 * MIB
    # 8.5 and 4.5 bits: 34 and 18 MiB, as llama.cpp reports them.
    assert kv_cache_bytes(LLAMA, work(kv_type="q8_0")) == 34 * MIB
    assert kv_cache_bytes(LLAMA, work(kv_type="q4_0")) == 18 * MIB


def test_each_slot_of_the_cache_is_padded() -> None:
    assert kv_cache_bytes(LLAMA, work(context_tokens=300, slots=3)) == kv_cache_bytes(
        LLAMA, work(context_tokens=512, slots=3)
    )


def tuned(**changes: object) -> DeviceProfile:
    return profile(tuning=profile().tuning.model_copy(update=changes))


def row(fit: Fit, what: str) -> FitRow:
    (found,) = [row for row in fit.rows if row.what == what]
    return found


def test_the_plan_counts_the_cache_by_its_type() -> None:
    rows = {
        kv_type: row(make_fit(LLAMA, tuned(kv_type=kv_type), is_estimate=False), "KV cache")
        for kv_type in ("f16", "q8_0")
    }
    assert rows["f16"].size_bytes == 64 * MIB
    assert rows["q8_0"].size_bytes == 34 * MIB
    assert rows["q8_0"].formula.endswith("× 1.0625 B (q8_0)")


def test_without_flash_attention_the_scores_count() -> None:
    usual, off = (
        row(make_fit(LLAMA, tuned(flash_attention=value), is_estimate=False), "compute buffers")
        for value in ("auto", "off")
    )
    # 128 tokens of a batch × 32 heads × 2048 tokens of the context, in 32 bit and once more in 16.
    assert 32 * MIB < off.size_bytes - usual.size_bytes < 48 * MIB
    assert "32 heads × 2048 scores" in off.formula


def test_weights_that_are_held_twice() -> None:
    """Embeddings that are the output matrix too, on variants that copy their type; everything under mlock."""
    quantized = estimate_quantized(LLAMA, "Q4_0")
    embeddings = next(tensor for tensor in quantized.tensors if tensor.name == "token_embd.weight")
    assert embeddings.type == "Q6_K"

    def twice(model: ModelSpec, variant: str, *, is_pinned: bool = False) -> int:
        return copied_bytes(model, variant=variant, is_pinned=is_pinned)

    assert twice(quantized, "armv8.0_1") == 0
    assert twice(quantized, "armv8.2_2") == embeddings.size_bytes
    assert twice(quantized, "haswell") == 0, "AVX2 has no order of its own for Q6_K"
    untied = estimate_quantized(llama_spec(is_tied=False), "Q4_0")
    assert twice(untied, "armv8.2_2") == 0
    pinned = twice(untied, "armv8.2_2", is_pinned=True)
    assert pinned == sum(
        tensor.size_bytes
        for tensor in untied.tensors
        if tensor.type in {"Q4_0", "Q6_K"} and "embd" not in tensor.name
    )
    assert row(make_fit(quantized, profile("pi5"), is_estimate=False), "weights held twice").size_bytes > 0


def test_rows_add_up_to_the_need() -> None:
    fit = make_fit(LLAMA, profile("pi5"), is_estimate=False)
    assert fit.need_bytes == sum(row.size_bytes for row in fit.rows)
    assert fit.rows[0].size_bytes == LLAMA.file_bytes
    assert row(fit, "server").size_bytes == SERVER_BYTES
    assert fit.budget_bytes == 8 * GIB * 7 // 10


def test_estimate_before_quantising_is_near_the_published_size() -> None:
    # The Q4_K_M file of this model on its publisher's page has 807,694,464 bytes.
    estimate = estimate_quantized(LLAMA, "Q4_K_M")
    assert estimate.quantization == "Q4_K_M"
    assert estimate.file_bytes == pytest.approx(807_694_464, rel=0.001)


def test_what_does_not_fit_is_refused_with_figures() -> None:
    small = profile(memory=GIB)
    fit = make_fit(LLAMA, small, is_estimate=True)
    with pytest.raises(PlanError) as caught:
        verify_fit(fit, model_name=LLAMA.name)
    assert "does not fit pi4 (computed before quantising): needs" in caught.value.message
    assert "leaves 717 MiB" in caught.value.message
    assert caught.value.exit_code == 4
    assert "--quantization" in caught.value.hint


def test_storage_counts_twice_the_model() -> None:
    fit = make_fit(LLAMA, profile("jetson", storage=4 * GIB), is_estimate=False)
    assert "storage while it is pulled" in fit.refusal


def test_context_is_never_longer_than_the_model_was_trained_for() -> None:
    short = dataclasses.replace(LLAMA, context_trained=512)
    fit = make_fit(short, profile(), is_estimate=False)
    assert fit.context_tokens == 512
    plan = make_plan(profile(), dataclasses.replace(short, quantization="Q8_0"), ORIGIN, epoch_s=0)
    assert any("context is 512 tokens, not 2048" in note for note in notes(plan))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demo.F16.gguf", "demo.Q8_0.gguf"),
        ("demo-f16.gguf", "demo.Q8_0.gguf"),
        ("My Model (v2).gguf", "My-Model-v2.Q8_0.gguf"),
        ("a.bf16.gguf", "a.Q8_0.gguf"),
    ],
)
def test_quantized_file_names(name: str, expected: str) -> None:
    assert quantized_file_name(name, "Q8_0") == expected


@given(text=st.text(max_size=200))
def test_slugs_are_always_fit_for_names(text: str) -> None:
    made = slug(text)
    assert 1 <= len(made) <= 80
    assert all(character.isascii() and (character.isalnum() or character in "._-") for character in made)


def test_labels_run_and_contents_agree() -> None:
    plan = make_plan(
        profile(),
        dataclasses.replace(LLAMA, quantization="Q4_K_M", file_bytes=GIB // 2),
        ORIGIN,
        epoch_s=1_700_000_000,
    )
    digest = Digest.of(b"model")
    labels = make_labels(plan, model_digest=digest)
    assert labels["dev.edgebuild.model.digest"] == str(digest)
    assert labels["dev.edgebuild.cpu.expected"] == "armv8.0_1"
    assert labels["org.opencontainers.image.created"] == "2023-11-14T22:13:20Z"
    run = make_run(plan, model_digest=digest)
    assert run.user == "10001:10001"
    assert dict(run.labels) == labels
    file = BakedFile(
        path="/models/m.gguf", size_bytes=GIB // 2, diff_id=digest, before=b"\x01", after=bytes(3)
    )
    contents = make_contents(plan, (file,))
    assert set(contents) == {
        "etc/edgebuild/README.md",
        "etc/edgebuild/model.json",
        "etc/edgebuild/runtime.json",
    }
    assert contents == make_contents(plan, (file,))


def test_order_of_an_index_is_by_demand() -> None:
    model = dataclasses.replace(LLAMA, quantization="Q4_K_M", file_bytes=GIB // 2)
    plans = [make_plan(profile(name), model, ORIGIN, epoch_s=0) for name in ("x86", "jetson", "pi5", "pi4")]
    assert [plan.profile.name for plan in sorted(plans, key=lambda plan: plan.demand)] == [
        "x86",
        "pi4",
        "jetson",
        "pi5",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1 KiB"),
        (83_100_000, "79.3 MiB"),
        (3 * GIB, "3 GiB"),
        (2**50, "1.02e+03 TiB"),
    ],
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text


def metadata(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "general.architecture": "llama", "general.file_type": 1, "llama.block_count": 2, "llama.embedding_length": 64,
        "llama.attention.head_count": 4, "llama.context_length": 128,
    }  # fmt: skip
    return {key: value for key, value in (base | changes).items() if value is not None}


def spec_of(**changes: object) -> ModelSpec:
    header = GgufHeader(
        metadata=metadata(**changes),  # type: ignore[arg-type]
        array_lengths={"tokenizer.ggml.tokens": 100},
        tensors=(Tensor(name="w", shape=(64, 64), type="F16", size_bytes=8192),),
        header_bytes=700,
        file_bytes=9000,
    )
    return make_model_spec(header, file_name="m.gguf")


def test_defaults_of_a_header() -> None:
    spec = spec_of()
    assert (spec.kv_heads, spec.key_length, spec.feed_forward, spec.name) == ((4, 4), 16, 256, "m")


def test_layers_that_keep_a_state_have_no_cache() -> None:
    # Qwen 3.5 0.8B: of each four blocks three are recurrent; a convolution of 4 and a state of 128 × 2048.
    metadata = {
        "general.architecture": "qwen35", "qwen35.block_count": 24, "qwen35.embedding_length": 1024,
        "qwen35.attention.head_count": 8, "qwen35.attention.head_count_kv": 2, "qwen35.context_length": 4096,
        "qwen35.ssm.conv_kernel": 4, "qwen35.ssm.inner_size": 2048, "qwen35.ssm.state_size": 128,
        "qwen35.ssm.group_count": 16,
    }  # fmt: skip
    spec = spec_of(**metadata)
    assert (sum(spec.kv_heads), spec.recurrent_layers) == (6 * 2, 18)
    assert spec.state_length == 3 * (2048 + 2 * 16 * 128) + 128 * 2048
    assert state_bytes(spec, work(slots=2)) == 18 * spec.state_length * 2 * 4
    listed = (True, False) * 12
    assert spec_of(**metadata, **{"qwen35.attention.recurrent_layers": listed}).recurrent_layers == 12
    hybrid = spec_of(**{"llama.attention.head_count_kv": (2, 0), "llama.shortconv.l_cache": 3})
    assert (hybrid.kv_heads, hybrid.recurrent_layers, hybrid.state_length) == ((2, 0), 1, 2 * 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"general.architecture": None},
        {"llama.block_count": None},
        {"llama.block_count": -1},
        {"llama.block_count": 5000},
        {"llama.block_count": "two"},
        {"llama.attention.head_count": 0},
        {"llama.attention.head_count_kv": (1, 2, 3)},
        {"llama.attention.head_count_kv": 1.5},
        {"llama.context_length": None},
        {"llama.embedding_length": 2**40},
        {"split.count": 3},
    ],
)
def test_headers_that_describe_no_usable_model(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError) as caught:
        spec_of(**changes)
    assert caught.value.hint

"""Choosing: the best that fits is taken, in the order that the documentation promises, and never what does not fit."""

import dataclasses
import itertools
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebuild.choice import (
    Choice,
    Selection,
    Version,
    make_selection,
    make_versions,
    verify_selection,
    wanted_quantizations,
)
from edgebuild.errors import PlanError
from edgebuild.fit import make_fit
from edgebuild.gguf_types import FILE_TYPES
from edgebuild.model_spec import ModelSpec, estimate_quantized
from edgebuild.profile import DeviceProfile, load_profile
from edgebuild.profile_engine import Auto, AutoContext, KvType, Quantization
from edgebuild.quantization import (
    AUTO_QUANTIZATIONS,
    KV_LOSS,
    QUANTIZATIONS,
    needs_matrix,
    quality_loss,
)
from edgebuild.tensor_types import DEFAULT_TYPES
from tests.support.specs import llama_spec

LLAMA = llama_spec()
MIB = 2**20


def device(memory: int, auto: Auto | None = None, **changes: object) -> DeviceProfile:
    base = load_profile("pi4", working_directory=Path("/"))
    return base.model_copy(
        update={"memory": memory, "quantization": "auto", "auto": auto or Auto(), "reserve": 0, **changes}
    )


def select(
    profile: DeviceProfile, model: ModelSpec = LLAMA, *, override: str | None = None, has_matrix: bool = False
) -> Selection:
    versions = make_versions(model, (profile,), override=override, has_matrix=has_matrix)
    return make_selection(model, profile, versions=versions, override=override, has_matrix=has_matrix)


def chosen(profile: DeviceProfile, model: ModelSpec = LLAMA, **arguments: object) -> Choice:
    return verify_selection(select(profile, model, **arguments), model_name="m")  # type: ignore[arg-type]


def need(quantization: str, profile: DeviceProfile, *, kv_type: str = "f16", context: int = 2048) -> int:
    return make_fit(
        estimate_quantized(LLAMA, quantization),
        profile,
        is_estimate=True,
        kv_type=kv_type,
        context_tokens=context,
    ).need_bytes


def test_the_lists_of_types_agree() -> None:
    assert set(get_args(Quantization)) == set(QUANTIZATIONS) == set(DEFAULT_TYPES)
    # NVFP4 is a type of files that llama.cpp reads and does not make.
    assert set(QUANTIZATIONS) == set(FILE_TYPES.values()) - {"NVFP4"}
    assert set(get_args(KvType)) == set(KV_LOSS)
    assert set(AUTO_QUANTIZATIONS) <= set(QUANTIZATIONS)
    assert not any(needs_matrix(name) for name in AUTO_QUANTIZATIONS)


def test_types_are_in_the_order_of_what_they_lose() -> None:
    losses = [quality_loss(name) for name in QUANTIZATIONS]
    assert losses == sorted(losses)
    assert QUANTIZATIONS.index("Q5_K_M") < QUANTIZATIONS.index("Q5_1"), "smaller and better"
    assert all(quality_loss(name, has_matrix=True) <= quality_loss(name) for name in QUANTIZATIONS)


@pytest.mark.parametrize(("better", "worse"), list(itertools.pairwise(AUTO_QUANTIZATIONS)))
def test_the_best_that_fits_is_taken(better: str, worse: str) -> None:
    profile = device(8 << 30)
    assert chosen(device(need(better, profile))).quantization == better
    assert chosen(device(need(better, profile) - 1)).quantization == worse


def test_storage_counts_too() -> None:
    room = 2 * estimate_quantized(LLAMA, "Q6_K").file_bytes
    assert chosen(device(8 << 30, storage=room)).quantization == "Q6_K"
    assert chosen(device(8 << 30, storage=room - 1)).quantization == "Q5_K_M"


def test_cache_then_weights_then_context_then_low_bits() -> None:
    """The order in which docs/models.md says that things are given up."""
    auto = Auto(kv_types=("f16", "q8_0", "q4_0"), context=AutoContext(least=1024))
    order = [candidate.choice for candidate in select(device(8 << 30, auto)).candidates]

    def at(quantization: str, kv_type: str, context: int) -> int:
        return order.index(Choice(quantization=quantization, kv_type=kv_type, context_tokens=context))

    wanted = [
        at("F16", "f16", 2048), at("F16", "q8_0", 2048), at("Q8_0", "f16", 2048), at("Q8_0", "q8_0", 2048),
        at("Q6_K", "f16", 2048), at("Q4_K_M", "q8_0", 2048), at("Q4_K_S", "q8_0", 2048), at("F16", "f16", 1024),
        at("F16", "q4_0", 2048), at("Q3_K_L", "f16", 2048), at("Q2_K", "f16", 2048),
    ]  # fmt: skip
    assert wanted == sorted(wanted)


def test_context_is_halved_down_to_the_least() -> None:
    auto = Auto(quantizations=("Q4_K_M",), context=AutoContext(least=300))
    found = [
        candidate.choice.context_tokens
        for candidate in select(device(8 << 30, auto)).candidates
        if candidate.is_asked_for
    ]
    assert found == [2048, 1024, 512, 300]
    profile = device(8 << 30)
    assert chosen(device(need("Q4_K_M", profile, context=512), auto)).context_tokens == 512
    short = dataclasses.replace(LLAMA, context_trained=256)
    assert chosen(device(8 << 30, auto), short).context_tokens == 256


def test_what_is_named_twice_counts_once() -> None:
    twice = Auto(quantizations=("Q8_0", "Q4_K_M", "Q8_0"), kv_types=("f16", "f16"))
    asked = [one.choice for one in select(device(8 << 30, twice)).candidates if one.is_asked_for]
    assert [choice.quantization for choice in asked] == ["Q8_0", "Q4_K_M"]


def test_a_plain_profile_keeps_its_cache_and_context() -> None:
    selection = select(device(900 * MIB))
    assert {(one.choice.kv_type, one.choice.context_tokens) for one in selection.candidates} == {
        ("f16", 2048)
    }


def test_what_is_asked_for_is_taken_or_refused() -> None:
    fixed = device(8 << 30, quantization="Q4_K_M")
    assert chosen(fixed).quantization == "Q4_K_M"
    assert chosen(fixed, override="Q8_0").quantization == "Q8_0"
    assert chosen(fixed, override="auto").quantization == "F16"
    shown = {one.choice.quantization: one.is_asked_for for one in select(fixed).candidates}
    assert shown == {name: name == "Q4_K_M" for name in AUTO_QUANTIZATIONS}
    small = device(need("Q4_K_M", fixed) - 1, quantization="Q4_K_M")
    with pytest.raises(PlanError, match=r"as Q4_K_M does not fit pi4 \(computed before quantising\): needs"):
        chosen(small)
    assert chosen(small, override="auto").quantization == "Q4_K_S"


def test_nothing_fits() -> None:
    with pytest.raises(PlanError) as caught:
        chosen(device(200 * MIB))
    assert caught.value.exit_code == 4
    assert (
        "none of 11 candidates fits; the nearest, Q2_K with a cache of f16 for 2048 tokens, needs"
        in caught.value.message
    )
    assert "\n" not in caught.value.message


def test_a_quantised_model_is_taken_as_it_is() -> None:
    quantized = estimate_quantized(LLAMA, "Q5_K_M")
    assert wanted_quantizations(quantized, device(8 << 30), override=None) == ("Q5_K_M",)
    assert wanted_quantizations(quantized, device(8 << 30), override="auto") == ("Q5_K_M",)
    auto = Auto(kv_types=("f16", "q8_0"))
    tight = make_fit(quantized, device(8 << 30), is_estimate=False).need_bytes - 1
    assert chosen(device(tight, auto), quantized) == Choice(
        quantization="Q5_K_M", kv_type="q8_0", context_tokens=2048
    )
    with pytest.raises(PlanError, match="is Q5_K_M already and cannot be made Q8_0"):
        wanted_quantizations(quantized, device(8 << 30), override="Q8_0")


@pytest.mark.parametrize(("dtype", "first"), [("F16", "F16"), ("BF16", "BF16"), ("F32", "F16")])
def test_sixteen_bit_is_what_the_model_has(dtype: str, first: str) -> None:
    assert chosen(device(32 << 30), llama_spec(dtype=dtype)).quantization == first


def test_types_that_need_a_matrix() -> None:
    with pytest.raises(PlanError, match="cannot be made IQ2_XS without an importance matrix"):
        chosen(device(8 << 30), override="IQ2_XS")
    assert chosen(device(8 << 30), override="IQ2_XS", has_matrix=True).quantization == "IQ2_XS"
    only = Auto(quantizations=("IQ2_XS", "IQ1_S"))
    with pytest.raises(PlanError, match="need an importance matrix"):
        chosen(device(8 << 30, only))
    mixed = Auto(quantizations=("IQ2_XS", "Q2_K"))
    assert chosen(device(8 << 30, mixed)).quantization == "Q2_K"
    assert chosen(device(8 << 30, mixed), has_matrix=True).quantization == "Q2_K"


def test_true_sizes_take_the_place_of_computed_ones() -> None:
    profile = device(need("Q6_K", device(8 << 30)) + MIB)
    versions = dict(make_versions(LLAMA, (profile,), override=None))
    assert make_selection(LLAMA, profile, versions=versions, override=None).chosen is not None
    larger = dataclasses.replace(versions["Q6_K"].spec, file_bytes=versions["Q6_K"].spec.file_bytes + 2 * MIB)
    versions["Q6_K"] = Version(spec=larger, is_estimate=False)
    selection = make_selection(LLAMA, profile, versions=versions, override=None)
    assert verify_selection(selection, model_name="m").quantization == "Q5_K_M"


VERSIONS = make_versions(LLAMA, (device(1 << 30),), override=None)


@settings(deadline=None)
@given(
    memory=st.integers(min_value=100 * MIB, max_value=6 << 30),
    storage=st.integers(min_value=1 << 30, max_value=8 << 30),
    least=st.sampled_from([None, 256, 1000]),
    kv_types=st.sampled_from([(), ("f16", "q8_0"), ("q4_0", "f16")]),
)
def test_whatever_is_taken_fits_and_nothing_better_does(
    memory: int, storage: int, least: int | None, kv_types: tuple[KvType, ...]
) -> None:
    profile = device(memory, Auto(kv_types=kv_types, context=AutoContext(least=least)), storage=storage)
    selection = make_selection(LLAMA, profile, versions=VERSIONS, override=None)
    taken = selection.chosen
    fitting = [one for one in selection.candidates if one.is_asked_for and not one.fit.refusal]
    assert (taken is None) == (not fitting)
    if taken is not None:
        assert taken.fit.need_bytes <= memory
        assert 2 * taken.fit.model_bytes <= storage
        assert taken.loss == min(one.loss for one in fitting)

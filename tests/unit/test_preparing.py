"""Models are made once each, and what came out larger than computed gives way to the next candidate; nothing that does not fit is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.errors import PlanError
from edgebuild.fit import make_fit
from edgebuild.gates import QualityGates
from edgebuild.model.source import FoundModel, ModelFile
from edgebuild.model_spec import estimate_quantized
from edgebuild.plan import ModelSource
from edgebuild.preparing import Prepared, choose, prepare
from edgebuild.profile import DeviceProfile, load_profile
from edgebuild.profile_engine import Auto, AutoContext
from edgebuild.quality import GateError, Judgement, Quality
from edgebuild.request import Context, EvaluationRequest, ImageRequest, LockOptions
from tests.support.specs import llama_spec
from tests.unit.artifacts.telling import Told, host_at

LLAMA = llama_spec()
MIB = 2**20

NOT_MEASURED = EvaluationRequest(is_wanted=False, text=None, tasks=None, most_tokens=0, gates=QualityGates())


def device(
    memory: int, name: str = "pi4", quantization: str = "auto", auto: Auto | None = None
) -> DeviceProfile:
    base = load_profile("pi4", working_directory=Path("/"))
    return base.model_copy(
        update={
            "name": name, "memory": memory, "reserve": 0, "quantization": quantization, "auto": auto or Auto(),
            "context": 16384 if auto else base.context,
        }
    )  # fmt: skip


def need(quantization: str, **choice: Any) -> int:
    spec = estimate_quantized(LLAMA, quantization)
    return make_fit(spec, device(8 << 30), is_estimate=True, **choice).need_bytes


class Making:
    """Stands for quantising; files come out as much larger than computed as is said."""

    def __init__(self, tmp_path: Path, *, past: tuple[str, ...] = (), **larger: int) -> None:
        self._folder = tmp_path
        self._larger = larger
        self._past = past
        self.asked: list[str] = []
        self.judged: list[str] = []
        self.told = Told()

    def file(self, name: str) -> ModelFile:
        self.asked.append(name)
        spec = estimate_quantized(LLAMA, name)
        return ModelFile(
            path=self._folder / spec.file_name,
            spec=replace(spec, file_bytes=spec.file_bytes + self._larger.get(name, 0)),
            source=ModelSource(kind="file", reference="m.gguf", file="m.gguf"),
        )

    def judge(self, profile: DeviceProfile, model: ModelFile) -> Judgement | None:
        """Stands for measuring; some types are past a gate."""
        name = model.spec.quantization
        self.judged.append(f"{profile.name} {name}")
        quality = Quality(quantization=name, file_bytes=model.spec.file_bytes, text=None, tasks=None)
        return Judgement(quality=quality, failures=("too bad",) if name in self._past else ())

    def run(self, *profiles: DeviceProfile, quantization: str | None = None) -> dict[str, Prepared]:
        request = ImageRequest(
            profiles=profiles, model=FoundModel(spec=LLAMA, place="m.gguf", is_demo=False, load=lambda: self.file("F16")), quantization=quantization, shard_bytes=0,
            output=None, references=(), push=False,
            lock=LockOptions(path=self._folder / "lock", locked=False, update=False, mirrors=()), is_tested=False,
            licence_required=False, evaluation=NOT_MEASURED, key=None, key_name="", engine="auto",
        )  # fmt: skip
        self.asked.clear()
        context = Context(host=host_at(self._folder), store=Store(self._folder / "store"), progress=self.told)
        return dict(prepare(request, choose(request), make=self.file, judge=self.judge, context=context))


def test_what_is_as_computed_is_made_once(tmp_path: Path) -> None:
    making = Making(tmp_path)
    found = making.run(device(need("Q6_K")), device(need("Q6_K"), "pi5"), device(need("Q4_K_M") + MIB, "x86"))
    assert {name: one.choice.quantization for name, one in found.items()} == {
        "pi4": "Q6_K", "pi5": "Q6_K", "x86": "Q4_K_M",
    }  # fmt: skip
    assert making.asked == ["Q6_K", "Q4_K_M"]
    assert making.told.notes == []
    assert found["pi4"].model is found["pi5"].model


def test_what_came_out_larger_gives_way(tmp_path: Path) -> None:
    making = Making(tmp_path, Q6_K=3 * MIB, Q5_K_M=400 * MIB)
    found = making.run(device(need("Q6_K") + MIB))
    assert found["pi4"].choice.quantization == "Q5_K_S"
    assert making.asked == ["Q6_K", "Q5_K_M", "Q5_K_S"]
    assert len(making.told.notes) == 2
    assert making.told.notes[0].startswith("pi4: Q6_K came out at")
    assert found["pi4"].model.spec.quantization == "Q5_K_S"


def test_another_device_learns_of_it(tmp_path: Path) -> None:
    making = Making(tmp_path, Q6_K=3 * MIB)
    found = making.run(device(need("Q6_K") + 64 * MIB), device(need("Q6_K") + MIB, "x86"))
    assert {name: one.choice.quantization for name, one in found.items()} == {"pi4": "Q6_K", "x86": "Q5_K_M"}
    assert making.asked == ["Q6_K", "Q5_K_M"]


def test_a_type_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    making = Making(tmp_path, Q6_K=3 * MIB)
    with pytest.raises(PlanError, match=r"as Q6_K does not fit pi4: needs"):
        making.run(device(need("Q6_K") + MIB, quantization="Q6_K"))


SHORTER = Auto(context=AutoContext(least=256))


def test_past_a_gate_better_weights_are_taken_with_less_context(tmp_path: Path) -> None:
    """Each type is made and judged once, from the best on the whole to better weights; Q4_K_S, next by loss, is no better."""
    making = Making(tmp_path, past=("Q4_K_M", "Q6_K"))
    found = making.run(device(need("Q8_0", context_tokens=1024), auto=SHORTER))["pi4"]
    assert (found.choice.quantization, found.choice.context_tokens) == ("Q8_0", 1024)
    assert found.quality is not None
    assert found.quality.quantization == "Q8_0"
    assert making.asked == ["Q4_K_M", "Q6_K", "Q8_0"]
    assert making.judged == ["pi4 Q4_K_M", "pi4 Q6_K", "pi4 Q8_0"]
    assert making.told.notes == [
        "pi4: Q4_K_M is past the gates (too bad); so Q6_K with a cache of f16 for 8192 tokens",
        "pi4: Q6_K is past the gates (too bad); so Q8_0 with a cache of f16 for 1024 tokens",
    ]


def test_where_no_better_weights_fit_it_says_so(tmp_path: Path) -> None:
    """What was chosen has the best weights that fit, unless the profile allows less context: nothing worse is tried."""
    making = Making(tmp_path, past=("Q5_K_M",))
    said = "as Q5_K_M is past the gates of pi4: too bad; no better type fits"
    with pytest.raises(GateError, match=said) as caught:
        making.run(device(need("Q5_K_M")))
    assert making.asked == ["Q5_K_M"]
    assert "auto" in caught.value.hint
    assert [one.quantization for one in caught.value.qualities] == ["Q5_K_M"]


def test_all_that_was_tried_is_shown(tmp_path: Path) -> None:
    making = Making(tmp_path, past=("Q4_K_M", "Q6_K", "Q8_0"))
    with pytest.raises(GateError, match="as Q8_0 is past the gates") as caught:
        making.run(device(need("Q8_0", context_tokens=1024), auto=SHORTER))
    assert [one.quantization for one in caught.value.qualities] == ["Q4_K_M", "Q6_K", "Q8_0"]


def test_better_weights_that_come_out_too_large_are_passed_over(tmp_path: Path) -> None:
    making = Making(tmp_path, past=("Q4_K_M",), Q6_K=400 * MIB, Q5_K_M=400 * MIB)
    found = making.run(device(need("Q8_0", context_tokens=1024), auto=SHORTER))["pi4"]
    assert (found.choice.quantization, found.choice.context_tokens) == ("Q5_K_S", 8192)
    assert making.judged == ["pi4 Q4_K_M", "pi4 Q5_K_S"]


def test_a_type_that_was_asked_for_is_not_replaced(tmp_path: Path) -> None:
    making = Making(tmp_path, past=("Q4_K_M",))
    with pytest.raises(GateError, match=r"as Q4_K_M is past the gates of pi4: too bad$") as caught:
        making.run(device(need("Q5_K_M"), quantization="Q4_K_M"))
    assert "--quantization Q5_K_S" in caught.value.hint
    with pytest.raises(GateError, match="no better type fits"):
        making.run(device(need("Q4_K_M"), quantization="Q4_K_M"))


def test_the_original_has_no_better_type(tmp_path: Path) -> None:
    making = Making(tmp_path, past=("F16",))
    with pytest.raises(GateError, match=r"too bad$") as caught:
        making.run(device(64 << 30))
    assert caught.value.hint == "take a better model, or loosen the gates"

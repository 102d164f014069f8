"""Models are made once each, and what came out larger than computed gives way to the next candidate; nothing that does not fit is kept."""

from dataclasses import replace
from pathlib import Path

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
from edgebuild.request import Context, EvaluationRequest, ImageRequest, LockOptions
from tests.support.specs import llama_spec
from tests.unit.artifacts.telling import Told, host_at

LLAMA = llama_spec()
MIB = 2**20

NOT_MEASURED = EvaluationRequest(is_wanted=False, text=None, tasks=None, most_tokens=0, gates=QualityGates())


def device(memory: int, name: str = "pi4", quantization: str = "auto") -> DeviceProfile:
    base = load_profile("pi4", working_directory=Path("/"))
    return base.model_copy(
        update={"name": name, "memory": memory, "reserve": 0, "quantization": quantization}
    )


def need(quantization: str) -> int:
    return make_fit(estimate_quantized(LLAMA, quantization), device(8 << 30), is_estimate=True).need_bytes


class Making:
    """Stands for quantising; files come out as much larger than computed as is said."""

    def __init__(self, tmp_path: Path, **larger: int) -> None:
        self._folder = tmp_path
        self._larger = larger
        self.asked: list[str] = []
        self.told = Told()

    def file(self, name: str) -> ModelFile:
        self.asked.append(name)
        spec = estimate_quantized(LLAMA, name)
        return ModelFile(
            path=self._folder / spec.file_name,
            spec=replace(spec, file_bytes=spec.file_bytes + self._larger.get(name, 0)),
            source=ModelSource(kind="file", reference="m.gguf", file="m.gguf"),
        )

    def run(self, *profiles: DeviceProfile, quantization: str | None = None) -> dict[str, Prepared]:
        request = ImageRequest(
            profiles=profiles, model=FoundModel(spec=LLAMA, place="m.gguf", is_demo=False, load=lambda: self.file("F16")), quantization=quantization, shard_bytes=0,
            output=None, references=(), push=False,
            lock=LockOptions(path=self._folder / "lock", locked=False, update=False, mirrors=()), is_tested=False,
            licence_required=False, evaluation=NOT_MEASURED, key=None, key_name="", engine="auto",
        )  # fmt: skip
        self.asked.clear()
        context = Context(host=host_at(self._folder), store=Store(self._folder / "store"), progress=self.told)
        return dict(prepare(request, choose(request), make=self.file, context=context))


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

"""Measuring models: figures against the definition, what is kept, what is refused, and gates that stop a build."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgebuild.errors import StoreError
from edgebuild.gguf import read_gguf_header
from edgebuild.model.evaluation.evaluate import Evaluator, Measures
from edgebuild.model.evaluation.inputs import load_text
from edgebuild.model.source import ModelFile
from edgebuild.model_spec import make_model_spec
from edgebuild.oci.digest import Digest
from edgebuild.plan import ModelSource
from edgebuild.progress import SilentProgress
from tests.support.built import ROOT, Built, Edgebuild, assert_refused, config_files, open_store
from tests.support.small_disk import SmallDisk
from tests.support.tiny_gguf import write_tiny_gguf

TEXT = " ".join(
    f"Battery {number * 37 % 101} % low, obstacle {number} m ahead; all the rest." for number in range(80)
)


@pytest.fixture
def ours(edgebuild: Edgebuild, built_lock: Path) -> Edgebuild:
    """The command, in a folder with the tests' lock and a text."""
    (edgebuild.folder / "edgebuild.lock").write_bytes(built_lock.read_bytes())
    (edgebuild.folder / "text.txt").write_text(TEXT, "utf-8")
    return edgebuild


class TestFigures:
    def test_as_the_definition_has_them(self, ours: Edgebuild, llama_host: Path, built_store: Path) -> None:
        model = write_tiny_gguf(ours.folder / "eval-words.F32.gguf", dtype="f32", context_tokens=256)
        document = ours.json("model", "eval", model, "--types", "Q4_0", "--eval-text", "text.txt")
        original, made = document["types"]
        assert (original["quantization"], made["quantization"]) == ("F32", "Q4_0")
        made_before = (built_store / "v1/model").glob("*/eval-words.Q4_0.gguf")
        quantised = max(made_before, key=lambda path: path.stat().st_mtime_ns)
        expected = self._reference(llama_host, model, quantised, ours.folder / "text.txt")
        text = made["text"]
        assert text["scored_tokens"] == expected["scored_tokens"] > 1000
        assert original["text"]["perplexity"] == pytest.approx(expected["base_perplexity"], rel=1e-5)
        assert text["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
        divergence = text["divergence"]
        for name in ("kl_divergence", "kl_divergence_99", "kl_divergence_max", "probability_change_rms"):
            assert divergence[name] == pytest.approx(expected[name], rel=5e-3), name
        assert divergence["same_top"] == pytest.approx(expected["same_top"], abs=2e-3)
        assert divergence["kl_divergence"] > 1e-4  # random weights suffer; else nothing was compared
        ratio = text["perplexity"] / original["text"]["perplexity"]
        assert divergence["perplexity_ratio"] == pytest.approx(ratio, rel=1e-6)

    def test_more_tokens_than_asked_for_are_not_read(self, ours: Edgebuild) -> None:
        model = write_tiny_gguf(ours.folder / "eval-tiny.F16.gguf", context_tokens=256)
        options = ("--types", "F16", "--eval-text", "text.txt", "--eval-tokens", "1024")
        (only,) = ours.json("model", "eval", model, *options)["types"]
        assert only["text"]["scored_tokens"] == 4 * 127
        assert only["text"]["divergence"]["kl_divergence"] == 0

    def _reference(self, library: Path, *arguments: Path) -> dict[str, Any]:
        script = ROOT / "tests/support/perplexity_reference.py"
        done = subprocess.run(
            [sys.executable, "-B", script, *arguments, "256"],
            env={"PYTHONPATH": str(library)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


class TestDemo:
    def test_smaller_types_are_worse_and_nothing_is_measured_twice(self, ours: Edgebuild) -> None:
        options = ("model", "eval", "--types", "Q8_0,Q2_K", "--eval-tokens", "2048")
        first = ours.run(*options, "--json")
        document = json.loads(first.stdout)
        original, large, small = document["types"]
        assert [one["quantization"] for one in document["types"]] == ["F16", "Q8_0", "Q2_K"]
        assert original["file_bytes"] > large["file_bytes"] > small["file_bytes"]
        assert original["text"]["perplexity"] < 1.01
        assert large["text"]["divergence"]["kl_divergence"] < small["text"]["divergence"]["kl_divergence"]
        assert original["tasks"]["asked"] == 250
        assert original["tasks"]["exact"] >= 247
        assert small["tasks"]["exact"] < 250
        assert small["tasks"]["wrong"][0]["given"] != small["tasks"]["wrong"][0]["expected"]
        again = ours.run(*options, "--plot", "quality.svg")
        assert "compare" not in again.stderr
        assert "answer" not in again.stderr
        assert "Q2_K" in again.stdout
        picture = (ours.folder / "quality.svg").read_text("utf-8")
        assert all(f">{name}<" in picture for name in ("F16", "Q8_0", "Q2_K"))
        assert ours.json(*options, "--plot", "quality.png")["plot"] == str(ours.folder / "quality.png")
        assert (ours.folder / "quality.png").read_bytes().startswith(b"\x89PNG")


class TestRefusals:
    def test_one_line_each(self, ours: Edgebuild) -> None:
        (ours.folder / "bad.jsonl").write_text('{"prompt": "a", "expected": "b"}\n{"prompt": "a"}\n', "utf-8")
        (ours.folder / "latin.txt").write_bytes("Grüße".encode("latin-1"))
        (ours.folder / "short.txt").write_text("Too short.", "utf-8")
        cases: tuple[tuple[tuple[str, ...], int, str], ...] = (
            (("--types", "Q9"), 2, "Q9"),
            (("--types", ","), 2, "names no type"),
            (("--eval-text", "nowhere.txt"), 2, "nowhere.txt"),
            (("--eval-text", "latin.txt"), 2, "UTF-8"),
            (("--eval-tasks", "bad.jsonl"), 2, "bad.jsonl:2"),
            (("--plot", "quality.jpg"), 2, "quality.jpg"),
            (("--plot", "nowhere/quality.png"), 2, "no such folder"),
            (("--types", "F16", "--eval-text", "short.txt"), 4, "tokens"),
        )
        for options, code, part in cases:
            assert_refused(ours.run("model", "eval", *options, check=False), code, part)
        assert_refused(ours.run("model", "evil", check=False), 2, "Did you mean 'eval'?")

    def test_plot_without_matplotlib(self, ours: Edgebuild) -> None:
        (ours.folder / "sitecustomize.py").write_text(
            "import sys\nsys.modules['matplotlib'] = None\n", "utf-8"
        )
        done = ours.run(
            "model", "eval", "--plot", "quality.png", check=False, env={"PYTHONPATH": str(ours.folder)}
        )
        assert_refused(done, 2, "matplotlib")
        assert "edgebuild[plot]" in done.stderr


class TestSurroundings:
    def test_no_room_for_what_the_original_says(
        self, ours: Edgebuild, llama_host: Path, make_disk: Callable[[int], SmallDisk]
    ) -> None:
        path = write_tiny_gguf(ours.folder / "eval-tiny.F32.gguf", dtype="f32", context_tokens=256)
        model = ModelFile(
            path=path,
            spec=make_model_spec(read_gguf_header(path), file_name=path.name),
            source=ModelSource(kind="file", reference=path.name, file=path.name),
        )
        disk = make_disk(1 << 20)
        host, store = open_store(disk.path / "store")
        evaluator = Evaluator(
            library=lambda: llama_host,
            library_source=Digest.of(b""),
            store=store,
            host=host,
            progress=SilentProgress(),
        )
        text = load_text(ours.folder / "text.txt")
        disk.fill(leave_bytes=256 << 10)
        with pytest.raises(StoreError, match=f"no space is left for the store {disk.path / 'store'} while"):
            evaluator.measure(model, model, Measures(text=text, tasks=None))
        assert not list(disk.path.glob("store/v1/evaluation/*/figures.json"))
        disk.make_room()
        # What is measured is what was read, whatever became of the file.
        (ours.folder / "text.txt").write_text("Too short.", "utf-8")
        measured = evaluator.measure(model, None, Measures(text=text, tasks=None)).text
        assert measured is not None
        assert measured.scored_tokens > 1000


class TestGates:
    def test_past_a_gate_nothing_is_built(self, ours: Edgebuild) -> None:
        (ours.folder / "edgebuild.yaml").write_text(
            "schema_version: 1\nmodel: demo\nprofiles: [x86]\ngates:\n  kl_divergence: 0.000001\n", "utf-8"
        )
        done = ours.run("image", "--quantization", "Q2_K", "--no-test", check=False)
        assert_refused(done, 4, "Q2_K", "KL divergence", "x86")
        assert "--quantization Q3_K_S" in done.stderr
        assert "KL divergence  99 % below" in done.stderr
        assert not (ours.folder / "build").exists()

    def test_past_a_gate_auto_takes_better_weights_for_less_context(self, ours: Edgebuild) -> None:
        def write(memory: int, gate: float) -> tuple[str, str]:
            (ours.folder / "tight.yaml").write_text(
                f"extends: x86\nschema_version: 1\nname: tight\nmemory: {memory}\nreserve: 0%\ncontext: 1024\n"
                "quantization: auto\nauto:\n  quantizations: [Q8_0, Q4_K_M]\n  context: {least: 512}\n"
                f"gates: {{kl_divergence: {gate:.12f}}}\n",
                "utf-8",
            )
            return "--profile", "./tight.yaml"

        (fit,) = ours.json("fit", *write(1 << 30, 1))["fits"]
        need = {(one["quantization"], one["context_tokens"]): one["need_bytes"] for one in fit["candidates"]}
        memory = need["Q4_K_M", 1024]
        assert need["Q8_0", 512] < memory < need["Q8_0", 1024]
        done = ours.run("image", *write(memory, 0.000_02), "--no-test", "--json")
        (image,) = json.loads(done.stdout)["images"]
        assert (image["fit"]["quantization"], image["fit"]["context_tokens"]) == ("Q8_0", 512)
        assert image["quality"]["quantization"] == "Q8_0"
        assert "tight: Q4_K_M is past the gates (KL divergence" in done.stderr
        refused = ours.run(
            "image", *write(memory, 0.000_000_000_001), "--no-test", "--output", "none", check=False
        )
        assert_refused(refused, 4, "as Q8_0 is past the gates of tight", "no better type fits")
        table = [line.split()[0] for line in refused.stderr.splitlines() if " MB " in line and "%" in line]
        assert table == ["Q4_K_M", "Q8_0"]
        assert not (ours.folder / "none").exists()

    def test_tasks_that_are_missing_are_told_before_the_work(self, ours: Edgebuild) -> None:
        model = write_tiny_gguf(ours.folder / "eval-tiny.F16.gguf", context_tokens=256)
        (ours.folder / "edgebuild.yaml").write_text(
            f"schema_version: 1\nmodel: {model}\nprofiles: [x86]\ngates:\n  exact_match: 99%\n", "utf-8"
        )
        done = ours.run("image", "--no-test", check=False)
        assert_refused(done, 2, "exact_match")
        assert "lock" not in done.stderr

    def test_figures_lie_in_the_image(self, ours: Edgebuild) -> None:
        (ours.folder / "edgebuild.yaml").write_text(
            "schema_version: 1\nmodel: demo\nprofiles: [x86]\ngates:\n  exact_match: 90%\n", "utf-8"
        )
        document = ours.json("image", "--no-test")
        (image,) = document["images"]
        assert image["quality"]["text"] is None  # no gate asked for it
        tasks = image["quality"]["tasks"]
        assert tasks["exact"] >= 240
        built = ours.folder / "build" / "blobs"
        config = json.loads((built / image["config_digest"].replace(":", "/")).read_bytes())
        labels = config["config"]["Labels"]
        assert labels["dev.edgebuild.quality.exact_match"] == f"{tasks['exact']}/250"
        files = config_files(ours.folder / "build", image)
        card, readme = (
            json.loads(files["etc/edgebuild/model.json"]),
            files["etc/edgebuild/README.md"].decode(),
        )
        assert card["quality"]["tasks"]["exact"] == tasks["exact"]
        assert f"{tasks['exact']} of 250 answers exact" in readme

    def test_without_gates_nothing_is_measured(self, built_layout: Built) -> None:
        for image in built_layout.document["images"]:
            assert image["quality"] is None
            readme = config_files(built_layout.layout, image)["etc/edgebuild/README.md"]
            assert b"| Quality | not measured |" in readme

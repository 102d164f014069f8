"""Measuring models: the engine runs in a process of its own; what it found is kept in the store."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.data import data_path
from edgebuild.errors import ModelError, StoreError, ToolError
from edgebuild.host import Host
from edgebuild.model.evaluation.exit_codes import DISK_FULL, REFUSED
from edgebuild.model.evaluation.inputs import EvaluationTasks, EvaluationText
from edgebuild.model.importance import ImportanceMatrix, load_matrix
from edgebuild.model.library import LIBRARY_PYTHON, library_environment
from edgebuild.model.source import ModelFile, model_digest
from edgebuild.oci.digest import Digest
from edgebuild.process import run
from edgebuild.progress import Progress
from edgebuild.quality import Divergence, Quality, TaskQuality, TextQuality, WrongAnswer

# Tokens of one chunk, as llama.cpp's perplexity tool has it.
CONTEXT_TOKENS = 512
MOST_TOKENS = 8192
CALIBRATION_TOKENS = 131_072
_WORKER = "edgebuild.model.evaluation.evaluate_worker"
_KIND = "evaluation"
_FIGURES, _MATRIX = "figures.json", "matrix.gguf"
_SHOWN_WRONG = 3
_PARAMETERS_PER_THREAD = 16_000_000
_SAME = Divergence(
    perplexity_ratio=1.0, perplexity_ratio_error=0.0, mean=0.0, mean_error=0.0, median=0.0, percentile_99=0.0,
    maximum=0.0, probability_change_rms=0.0, same_top=1.0, same_top_error=0.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What is measured.

    Attributes:
        text: On which text; None for none.
        tasks: On which tasks; None for none.
        most_tokens: Of a longer text only so many count.
    """

    text: EvaluationText | None
    tasks: EvaluationTasks | None
    most_tokens: int = MOST_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Measures models with llama.cpp on this machine.

    Attributes:
        library: Gives the folder that holds the package `llama_cpp` with this machine's CPU variants; called only when there is work.
        library_source: sha256 of the source that it is built from.
        store: Keeps what was found, and the original's log probabilities.
        host: This machine.
        progress: Told how far it is.
    """

    library: Callable[[], Path]
    library_source: Digest
    store: Store
    host: Host
    progress: Progress

    def measure(self, model: ModelFile, original: ModelFile | None, measures: Measures) -> Quality:
        """Measure a model, beside its original where there is one; from the store what was measured before.

        Args:
            model: The model; may be the original itself.
            original: The same model in 16 bit, or None.
            measures: What is measured.

        Raises:
            ModelError: The model or the text cannot be measured.
            ToolError: The engine crashed, or memory does not suffice.
            StoreError: The disk is full.
        """
        text, tasks = measures.text, measures.tasks
        return Quality(
            quantization=model.spec.quantization,
            file_bytes=model.spec.file_bytes,
            text=None if text is None else self._text(model, original, text, measures.most_tokens),
            tasks=None if tasks is None else self._tasks(model, tasks),
        )

    def collect(self, model: ModelFile, text: EvaluationText) -> ImportanceMatrix:
        """Compute the importance matrix of a model from a text; from the store what was computed before.

        Args:
            model: The model, in 16 bit.
            text: The text.

        Raises:
            ModelError: The model is of a kind that is not supported, or the text is too short.
            ToolError: The engine crashed, or memory does not suffice.
        """
        what = {"text": str(text.digest), "context_tokens": CONTEXT_TOKENS, "most_tokens": CALIBRATION_TOKENS}
        asked = _asked(text, CALIBRATION_TOKENS) | {"name": text.name}
        folder, figures = self._kept(
            model,
            "collect",
            what,
            lambda folder: asked | {"file": str(folder / _MATRIX)},
            title=f"importance matrix of {model.spec.name} from {text.name}",
        )
        made = load_matrix(folder / _MATRIX, name="auto")
        return replace(made, text=text.name, chunks=figures["chunks"])

    def _text(
        self, model: ModelFile, original: ModelFile | None, text: EvaluationText, most_tokens: int
    ) -> TextQuality:
        what = {"text": str(text.digest), "context_tokens": CONTEXT_TOKENS, "most_tokens": most_tokens}
        asked = _asked(text, most_tokens)
        if original is None:
            figures = self._kept(
                model, "measure", what, lambda _: asked, title=f"read {text.name} with {model.spec.file_name}"
            )[1]
            return _text_quality(text, figures, None)
        title = f"read {text.name} with {original.spec.file_name}"
        folder, figures = self._kept(
            original,
            "measure",
            what | {"keeps": "log probabilities"},
            lambda folder: asked | {"folder": str(folder)},
            title=title,
        )
        if model.files == original.files:
            return _text_quality(text, figures, _SAME)
        figures = self._kept(
            model,
            "compare",
            what | {"original": str(self._digest(original))},
            lambda _: {"folder": str(folder)},
            title=f"compare {model.spec.file_name} with {original.spec.file_name}",
        )[1]
        return _text_quality(text, figures, _divergence(figures))

    def _tasks(self, model: ModelFile, tasks: EvaluationTasks) -> TaskQuality:
        title = f"answer {tasks.name} with {model.spec.file_name}"
        figures = self._kept(
            model, "answer", {"tasks": str(tasks.digest)}, lambda _: {"tasks": tasks.tasks}, title=title
        )[1]
        wrong = [
            WrongAnswer(prompt=prompt, expected=expected, given=given)
            for (prompt, expected), given in zip(tasks.tasks, figures["answers"], strict=True)
            if given != expected
        ]
        return TaskQuality(
            tasks=tasks.name,
            digest=str(tasks.digest),
            asked=len(tasks.tasks),
            exact=len(tasks.tasks) - len(wrong),
            wrong=tuple(wrong[:_SHOWN_WRONG]),
        )

    def _kept(
        self,
        model: ModelFile,
        do: str,
        what: dict[str, Any],
        request: Callable[[Path], dict[str, Any]],
        *,
        title: str,
    ) -> tuple[Path, dict[str, Any]]:
        """Return an entry of the store and its figures, measured now if they are not there."""
        key = {
            "format": 1,
            "do": do,
            "model": str(self._digest(model)),
            "library": str(self.library_source),
            "machine": self.host.machine,
            **what,
        }

        def build(folder: Path) -> None:
            asked = {
                "do": do,
                "files": [str(path) for path in model.files],
                "threads": self._threads(model),
                **request(folder),
            }
            figures = self._run(asked, title=title, name=model.spec.file_name)
            (folder / _FIGURES).write_text(json.dumps(figures), encoding="utf-8")

        folder = self.store.make(_KIND, Digest.of(canonical_json(key)), build)
        return folder, json.loads((folder / _FIGURES).read_text(encoding="utf-8"))

    def _digest(self, model: ModelFile) -> Digest:
        return model_digest(model, seals=self.store, progress=self.progress)

    def _threads(self, model: ModelFile) -> int:
        """Threads wait for each other many times a pass: on small models, longer than they compute."""
        return max(1, min(self.host.cpu_count, model.spec.parameters // _PARAMETERS_PER_THREAD))

    def _run(self, request: dict[str, Any], *, title: str, name: str) -> dict[str, Any]:
        library = self.library()
        paths = (library, data_path("images") / "server", Path(__file__).parents[3])
        with self.progress.task(title) as task:
            done = run(
                [*LIBRARY_PYTHON, "-m", _WORKER],
                environment=library_environment(self.host, *paths),
                stdin=json.dumps(request).encode(),
                check=False,
                on_line=lambda line: None if line.startswith("{") else task.status(line),
            )
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found
        if done.returncode == REFUSED:
            raise ModelError(
                f"{name} cannot be measured: {done.reason}",
                hint="try another text: --eval-text FILE, or --calibration FILE for an importance matrix",
            )
        if done.returncode == DISK_FULL:
            raise StoreError(
                f"no space is left for the store {self.store.root} while {name} is measured",
                hint="run `edgebuild cache prune`, measure fewer tokens, or choose another place with --cache DIR",
            )
        raise ToolError(
            f"measuring {name} failed: {done.reason}", hint="check that memory suffices, then try again"
        )


def _asked(text: EvaluationText, most_tokens: int) -> dict[str, Any]:
    asked: dict[str, Any] = {"most_tokens": most_tokens, "context_tokens": CONTEXT_TOKENS}
    return asked | ({"chats": text.chats} if text.chats else {"text": text.text})


def _text_quality(
    text: EvaluationText, figures: dict[str, Any], divergence: Divergence | None
) -> TextQuality:
    return TextQuality(
        text=text.name,
        digest=str(text.digest),
        context_tokens=figures["context_tokens"],
        scored_tokens=figures["scored_tokens"],
        perplexity=figures["perplexity"],
        perplexity_error=figures["perplexity_error"],
        divergence=divergence,
    )


def _divergence(figures: dict[str, Any]) -> Divergence:
    return Divergence(
        perplexity_ratio=figures["perplexity_ratio"],
        perplexity_ratio_error=figures["perplexity_ratio_error"],
        mean=figures["kl_divergence"],
        mean_error=figures["kl_divergence_error"],
        median=figures["kl_divergence_median"],
        percentile_99=figures["kl_divergence_99"],
        maximum=figures["kl_divergence_max"],
        probability_change_rms=figures["probability_change_rms"],
        same_top=figures["same_top"],
        same_top_error=figures["same_top_error"],
    )

"""How good a model is, measured: values, what labels and documents say of them, and what keeps an image from being built. Pure.

Figures depend a little on the processor that measured them, so that what goes into an image is rounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgebuild.errors import PlanError
from edgebuild.gates import MILLION, QualityGates

_DIGITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How far a model is from its 16-bit original on a text.

    Attributes:
        perplexity_ratio: Perplexity divided by the original's.
        perplexity_ratio_error: Its standard error.
        mean: Mean of the Kullback-Leibler divergence from the original, in nats.
        mean_error: Its standard error.
        median: Its median.
        percentile_99: Its 99 % percentile.
        maximum: Its maximum.
        probability_change_rms: Root mean square of the change in probability of the token that came.
        same_top: Share of positions where both find the same token likeliest.
        same_top_error: Its standard error.
    """

    perplexity_ratio: float
    perplexity_ratio_error: float
    mean: float
    mean_error: float
    median: float
    percentile_99: float
    maximum: float
    probability_change_rms: float
    same_top: float
    same_top_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TextQuality:
    """What a model makes of a text.

    Attributes:
        text: Name of the text.
        digest: sha256 of the text, as "sha256:…".
        context_tokens: Longest chunk.
        scored_tokens: Positions whose prediction was scored.
        perplexity: exp of the mean negative log probability of the tokens that came.
        perplexity_error: Its standard error.
        divergence: Beside the original; None where there is none in 16 bit, all zero where it is the original itself.
    """

    text: str
    digest: str
    context_tokens: int
    scored_tokens: int
    perplexity: float
    perplexity_error: float
    divergence: Divergence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongAnswer:
    """A task that was answered otherwise than expected.

    Attributes:
        prompt: The question.
        expected: The right answer.
        given: The answer; it may be cut short.
    """

    prompt: str
    expected: str
    given: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuality:
    """How many tasks a model answers to the letter.

    Attributes:
        tasks: Name of the file.
        digest: sha256 of the tasks, as "sha256:…".
        asked: Number of tasks.
        exact: Number of exact answers.
        wrong: The first of those that were not.
    """

    tasks: str
    digest: str
    asked: int
    exact: int
    wrong: tuple[WrongAnswer, ...]

    @property
    def share(self) -> float:
        """Share of exact answers."""
        return self.exact / self.asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What was measured of one model.

    Attributes:
        quantization: Type of its weights.
        file_bytes: Size of its file.
        text: On a text, or None.
        tasks: On tasks, or None.
    """

    quantization: str
    file_bytes: int
    text: TextQuality | None
    tasks: TaskQuality | None


class GateError(PlanError):
    """A model that is past a gate.

    Attributes:
        qualities: What was measured of each type that was tried, beside its original where there is one.
    """

    def __init__(self, message: str, *, hint: str, qualities: tuple[Quality, ...]) -> None:
        super().__init__(message, hint=hint)
        self.qualities = qualities


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A model held against gates.

    Attributes:
        quality: What was measured.
        failures: What is past a gate, one phrase each.
    """

    quality: Quality
    failures: tuple[str, ...]


def find_failures(quality: Quality, gates: QualityGates) -> tuple[str, ...]:
    """Compare with the gates.

    Returns:
        What is past a gate, one phrase each, e.g. "KL divergence 0.081 is above 0.05".
    """
    return tuple(_failures(quality, gates))


def _failures(quality: Quality, gates: QualityGates) -> Iterator[str]:
    divergence = quality.text.divergence if quality.text is not None else None
    if gates.perplexity_increase is not None:
        if divergence is None:
            yield "the increase of the perplexity is not known, for want of a 16-bit original"
        elif round((divergence.perplexity_ratio - 1) * MILLION) > gates.perplexity_increase:
            increase = percent(divergence.perplexity_ratio - 1)
            yield f"perplexity is {increase} above the original's, more than {percent(gates.perplexity_increase / MILLION)}"
    if gates.kl_divergence is not None:
        if divergence is None:
            yield "the KL divergence is not known, for want of a 16-bit original"
        elif round(divergence.mean * MILLION) > gates.kl_divergence:
            yield f"KL divergence {figure(divergence.mean)} is above {figure(gates.kl_divergence / MILLION)}"
    if gates.exact_match is not None:
        tasks = quality.tasks
        if tasks is None:
            yield "exact matches are not known, for want of tasks"
        elif tasks.exact * MILLION < gates.exact_match * tasks.asked:
            yield f"{tasks.exact} of {tasks.asked} answers are exact, fewer than {percent(gates.exact_match / MILLION)}"


def figure(value: float) -> str:
    """Write a figure with three digits: "12.3", "0.0456", "0"."""
    if abs(value) < 1e-6:
        return "0"
    text = f"{value:.{_DIGITS}g}"
    return text if "e" not in text else f"{float(text):.8f}".rstrip("0").rstrip(".")


def percent(share: float) -> str:
    """Write a share with three digits as percent: "99.6 %", "0.42 %"."""
    return f"{figure(round(share * 100, 4))} %"


def quality_labels(quality: Quality | None) -> dict[str, str]:
    """Name what was measured, as labels and annotations; none where nothing was."""
    if quality is None:
        return {}
    labels = {}
    if (text := quality.text) is not None:
        labels["dev.edgebuild.quality.text"] = text.text
        labels["dev.edgebuild.quality.perplexity"] = _perplexity(text.perplexity)
        if (divergence := text.divergence) is not None:
            labels["dev.edgebuild.quality.perplexity_ratio"] = _ratio(divergence.perplexity_ratio)
            labels["dev.edgebuild.quality.kl_divergence"] = figure(divergence.mean)
            labels["dev.edgebuild.quality.same_top"] = figure(divergence.same_top)
    if (tasks := quality.tasks) is not None:
        labels["dev.edgebuild.quality.tasks"] = tasks.tasks
        labels["dev.edgebuild.quality.exact_match"] = f"{tasks.exact}/{tasks.asked}"
    return labels


def quality_card(quality: Quality | None) -> dict[str, Any] | None:
    """Describe what was measured for model.json, whose figures are text so that they are the same everywhere."""
    if quality is None:
        return None
    text, tasks = quality.text, quality.tasks
    divergence = text.divergence if text is not None else None
    return {
        "text": None
        if text is None
        else {
            "name": text.text,
            "digest": text.digest,
            "scored_tokens": text.scored_tokens,
            "perplexity": _perplexity(text.perplexity),
            "perplexity_ratio": None if divergence is None else _ratio(divergence.perplexity_ratio),
            "kl_divergence": None if divergence is None else figure(divergence.mean),
            "kl_divergence_99": None if divergence is None else figure(divergence.percentile_99),
            "same_top": None if divergence is None else figure(divergence.same_top),
        },
        "tasks": None
        if tasks is None
        else {"name": tasks.tasks, "digest": tasks.digest, "asked": tasks.asked, "exact": tasks.exact},
    }


def quality_document(quality: Quality | None) -> dict[str, Any] | None:
    """Describe what was measured for `--json`, in full."""
    if quality is None:
        return None
    text, tasks = quality.text, quality.tasks
    return {
        "quantization": quality.quantization,
        "file_bytes": quality.file_bytes,
        "text": None if text is None else _text_document(text),
        "tasks": None
        if tasks is None
        else {
            "name": tasks.tasks,
            "digest": tasks.digest,
            "asked": tasks.asked,
            "exact": tasks.exact,
            "wrong": [
                {"prompt": one.prompt, "expected": one.expected, "given": one.given} for one in tasks.wrong
            ],
        },
    }


def _text_document(text: TextQuality) -> dict[str, Any]:
    divergence = text.divergence
    return {
        "name": text.text,
        "digest": text.digest,
        "context_tokens": text.context_tokens,
        "scored_tokens": text.scored_tokens,
        "perplexity": text.perplexity,
        "perplexity_error": text.perplexity_error,
        "divergence": None
        if divergence is None
        else {
            "perplexity_ratio": divergence.perplexity_ratio,
            "perplexity_ratio_error": divergence.perplexity_ratio_error,
            "kl_divergence": divergence.mean,
            "kl_divergence_error": divergence.mean_error,
            "kl_divergence_median": divergence.median,
            "kl_divergence_99": divergence.percentile_99,
            "kl_divergence_max": divergence.maximum,
            "probability_change_rms": divergence.probability_change_rms,
            "same_top": divergence.same_top,
            "same_top_error": divergence.same_top_error,
        },
    }


def quality_lines(quality: Quality | None) -> tuple[str, ...]:
    """Say what was measured in a few words a line, for the README in the image."""
    if quality is None:
        return ("not measured",)
    lines = []
    if (text := quality.text) is not None:
        line = f"perplexity {_perplexity(text.perplexity)} on {text.text} ({text.scored_tokens} tokens)"
        if (divergence := text.divergence) is not None:
            line += (
                f", {_ratio(divergence.perplexity_ratio)} times the original's; KL divergence {figure(divergence.mean)}"
                f", 99 % below {figure(divergence.percentile_99)}; same likeliest token {percent(divergence.same_top)}"
            )
        lines.append(line)
    if (tasks := quality.tasks) is not None:
        lines.append(f"{tasks.exact} of {tasks.asked} answers exact ({tasks.tasks})")
    return tuple(lines)


def quality_table(qualities: tuple[Quality, ...]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Lay figures out, a model a line.

    Returns:
        Titles of the columns, and rows of as many cells.
    """
    header = ("type", "size", "perplexity", "increase", "KL divergence", "99 % below", "same token", "exact")
    return header, tuple(_row(quality) for quality in qualities)


def _row(quality: Quality) -> tuple[str, ...]:
    text, tasks = quality.text, quality.tasks
    divergence = text.divergence if text is not None else None
    return (
        quality.quantization,
        f"{quality.file_bytes / 1e6:.1f} MB",
        "–" if text is None else f"{text.perplexity:.4f}",
        *(
            ("–", "–", "–", "–")
            if divergence is None
            else (
                f"{100 * (divergence.perplexity_ratio - 1):+.2f} %",
                f"{divergence.mean:.5f}",
                f"{divergence.percentile_99:.5f}",
                f"{100 * divergence.same_top:.1f} %",
            )
        ),
        "–" if tasks is None else f"{100 * tasks.share:.1f} %",
    )


def _perplexity(value: float) -> str:
    """Write a perplexity with a digit more, since it may be just above one."""
    return f"{value:.3f}" if value < 10 else figure(value)


def _ratio(value: float) -> str:
    """Write a ratio near one, whose digits count after the point."""
    return f"{value:.4f}"

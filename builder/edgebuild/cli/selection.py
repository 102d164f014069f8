"""What fits a device and what was chosen, for people and as JSON."""

from edgebuild.choice import Candidate, Selection, describe_verdict
from edgebuild.cli.tables import render_table
from edgebuild.fit import Fit, format_bytes

# Candidates shown on either side of the one that was taken; all of them are in the document of `--json`.
_BEFORE, _AFTER = 12, 4


def render_selection(selection: Selection, *, model_name: str) -> str:
    """Lay out the arithmetic of one device, and the candidates where there are several."""
    text = render_fit(selection.shown.fit, model_name=model_name)
    if len(selection.candidates) == 1:
        return text
    return f"{text}\n\n{render_candidates(selection)}"


def render_candidates(selection: Selection) -> str:
    """Lay out the candidates around the one that was taken, the best first."""
    candidates = selection.candidates
    at = candidates.index(selection.shown)
    first, last = max(0, at - _BEFORE), min(len(candidates), at + 1 + _AFTER)
    rows = [_row(candidate, selection) for candidate in candidates[first:last]]
    table = render_table(
        ("", "weights", "cache", "context", "model", "need", "loss", ""), rows, right=frozenset({3, 4, 5, 6})
    )
    lines = [table]
    if first:
        lines.insert(0, f"{first} better ones, none of which fits, are left out")
    if last < len(candidates):
        lines.append(f"and {len(candidates) - last} of less quality")
    return "\n".join(lines)


def _row(candidate: Candidate, selection: Selection) -> tuple[str, ...]:
    choice, fit = candidate.choice, candidate.fit
    return (
        "▸" if candidate is selection.chosen else "",
        choice.quantization,
        choice.kv_type,
        str(choice.context_tokens),
        ("≈ " if fit.is_estimate else "") + format_bytes(fit.model_bytes),
        format_bytes(fit.need_bytes),
        f"{candidate.loss:.4f}",
        describe_verdict(candidate, chosen=selection.chosen),
    )


def selection_document(selection: Selection) -> dict[str, object]:
    """Give the arithmetic of what was taken, or came nearest, and all candidates, as JSON."""
    return fit_document(selection.shown.fit) | {
        "candidates": [
            {
                "quantization": candidate.choice.quantization,
                "kv_type": candidate.choice.kv_type,
                "context_tokens": candidate.choice.context_tokens,
                "model_bytes": candidate.fit.model_bytes,
                "need_bytes": candidate.fit.need_bytes,
                "loss": round(candidate.loss, 6),
                "fits": not candidate.fit.refusal,
                "refusal": candidate.fit.refusal or None,
                "is_asked_for": candidate.is_asked_for,
                "is_taken": candidate is selection.chosen,
            }
            for candidate in selection.candidates
        ]
    }


def render_fit(fit: Fit, *, model_name: str) -> str:
    """Lay out the arithmetic of one device."""
    about = " (size computed before quantising)" if fit.is_estimate else ""
    rows = [(row.what, row.formula, format_bytes(row.size_bytes)) for row in fit.rows]
    rows.append(("need", "", format_bytes(fit.need_bytes)))
    rows.append(("budget", fit.budget_formula, format_bytes(fit.budget_bytes)))
    verdict = f"does not fit: {fit.refusal}" if fit.refusal else "fits"
    return f"{model_name} as {fit.quantization} on {fit.profile}: {verdict}{about}\n" + render_table(
        ("memory", "how", "size"), rows, right=frozenset({2})
    )


def fit_document(fit: Fit) -> dict[str, object]:
    """Give the arithmetic as JSON."""
    return {
        "profile": fit.profile,
        "quantization": fit.quantization,
        "kv_type": fit.kv_type,
        "context_tokens": fit.context_tokens,
        "model_bytes": fit.model_bytes,
        "need_bytes": fit.need_bytes,
        "budget_bytes": fit.budget_bytes,
        "fits": not fit.refusal,
        "refusal": fit.refusal or None,
        "is_estimate": fit.is_estimate,
        "rows": [{"what": row.what, "how": row.formula, "size_bytes": row.size_bytes} for row in fit.rows],
    }

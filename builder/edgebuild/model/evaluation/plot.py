"""A picture of quality against size, with which a person picks a type."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgebuild.artifacts.files import write_atomically
from edgebuild.errors import ToolError, UsageError
from edgebuild.quality import Quality

ENDINGS = (".png", ".svg")
# Below this the divergence is rounding; a logarithmic axis needs an end.
_LEAST_NATS = 1e-6
# Sizes nearer to one another than by these factors would be written over one another.
_TICKS_APART, _NAMES_APART = 1.12, 1.06


def verify_plottable(path: Path) -> None:
    """Refuse what could not be drawn, before anything is measured.

    Raises:
        UsageError: The file has another ending or no folder, or matplotlib is missing.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(f"--plot {path.name}: unknown kind of picture", hint="call it *.png or *.svg")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: no such folder", hint="make the folder first")
    if find_spec("matplotlib") is None:
        raise UsageError(
            "--plot needs matplotlib, which is not installed",
            hint="pip install 'edgebuild[plot]', or leave --plot out",
        )


def write_plot(path: Path, name: str, qualities: Sequence[Quality]) -> None:
    """Draw divergence, and exact answers where there were tasks, over size.

    Args:
        path: The file, a PNG or SVG by its ending.
        name: The model's.
        qualities: The original first.

    Raises:
        ToolError: It cannot be written.
    """
    from io import BytesIO  # noqa: PLC0415 - with matplotlib

    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    has_tasks = any(quality.tasks is not None for quality in qualities)
    figure = Figure(figsize=(8, 7 if has_tasks else 4.5), layout="constrained")
    figure.suptitle(f"{name}: quality against size")
    axes = figure.subplots(2 if has_tasks else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_divergence(axes[0], qualities)
    if has_tasks:
        _draw_tasks(axes[1], qualities)
    axes[-1].set_xlabel("size of the file, MB")
    axes[-1].set_xticks(_apart([quality.file_bytes / 1e6 for quality in qualities], _TICKS_APART))
    axes[-1].set_xticks([], minor=True)
    axes[-1].xaxis.set_major_formatter(lambda size, _: f"{size:.3g}")
    picture = BytesIO()
    # Nothing of the moment and no random names, so that the same figures give the same picture.
    with mpl.rc_context({"svg.hashsalt": "edgebuild", "svg.fonttype": "none"}):
        figure.savefig(
            picture,
            format=path.suffix[1:],
            dpi=150,
            metadata={"Date": None} if path.suffix == ".svg" else None,
        )
    try:
        write_atomically(path, picture.getvalue())
    except OSError as error:
        raise ToolError(f"{path}: cannot be written: {error.strerror}", hint="check the folder") from error


def _apart(sizes: Sequence[float], factor: float) -> list[float]:
    """Pick sizes of which each is larger than the one before by a factor at least."""
    found: list[float] = []
    for size in sorted(sizes):
        if not found or size >= factor * found[-1]:
            found.append(size)
    return found


def _draw_divergence(axes: Any, qualities: Sequence[Quality]) -> None:
    points = [
        (quality.file_bytes / 1e6, max(text.divergence.mean, _LEAST_NATS), quality.quantization)
        for quality in qualities
        # The original's is zero, which a logarithmic axis has no place for.
        if (text := quality.text) is not None and text.divergence is not None and text.divergence.mean > 0
    ]
    axes.set_yscale("log")
    axes.set_ylabel("KL divergence from the original, nats\n(lower is better)")
    _draw(axes, points, marker="o", worse=1)


def _draw_tasks(axes: Any, qualities: Sequence[Quality]) -> None:
    points = [
        (quality.file_bytes / 1e6, 100 * quality.tasks.share, quality.quantization)
        for quality in qualities
        if quality.tasks is not None
    ]
    axes.set_ylabel("exact answers, %\n(higher is better)")
    _draw(axes, points, marker="s", worse=-1)


def _draw(axes: Any, points: Sequence[tuple[float, float, str]], *, marker: str, worse: int) -> None:
    """Draw points, and a line through those that no other beats in both size and quality.

    Args:
        axes: Where.
        points: Size, figure and name of each.
        marker: matplotlib's name of their form.
        worse: 1 where a larger figure is worse, -1 where a smaller one is.
    """
    ordered = sorted(points)
    best = [
        (x, y)
        for number, (x, y, _) in enumerate(ordered)
        if all(worse * y < worse * other for _, other, _ in ordered[:number])
    ]
    axes.plot([x for x, _ in best], [y for _, y in best], linestyle="-", linewidth=1, color="0.7", zorder=1)
    axes.scatter([x for x, _, _ in ordered], [y for _, y, _ in ordered], marker=marker, s=24, zorder=2)
    above = set(_apart([x for x, _, _ in ordered], _NAMES_APART))
    for x, y, label in ordered:
        place, rotation, alignment = ((3, 4), 45, "bottom") if x in above else ((3, -4), -45, "top")
        axes.annotate(
            label,
            (x, y),
            xytext=place,
            textcoords="offset points",
            rotation=rotation,
            va=alignment,
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.25)
    axes.grid(visible=True, which="major", linewidth=0.4)
